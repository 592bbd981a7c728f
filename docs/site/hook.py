"""MkDocs hook: adds pages that are made from the repository, and turns links to its files into links to them."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import join, normpath
from typing import Any

import layers
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "EXPERIMENTS.md")
EXAMPLE = "multirun/smollm2_countries"
EXAMPLE_FILES = ("report.html", "report.png")
FOLDERS = [name for name in layers.members() if layers.is_folder(name)]
MODULES = [name for name in layers.members() if not layers.is_folder(name)]


def on_config(config: Any) -> Any:
    """Lists the API pages in the navigation."""
    (api,) = (entry for entry in config.nav if "API" in entry)
    api["API"] = ["api/stasc.md", *({f"stasc.{name}": f"api/{name}.md"} for name in FOLDERS)]
    config.watch += [str(ROOT / name) for name in ("README.md", "conf", "src", "pyproject.toml", *ROOT_PAGES)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that stand outside docs/, the settings and the API pages, and the example report."""
    texts = {name: _moved((ROOT / name).read_text(encoding="utf-8")) for name in ROOT_PAGES}
    texts["index.md"] = _moved((ROOT / "README.md").read_text(encoding="utf-8"))
    texts["settings.md"] = _settings()
    texts["api/stasc.md"] = "# stasc\n\n" + "\n\n".join(f"::: stasc.{name}" for name in MODULES)
    texts |= {f"api/{name}.md": f"::: stasc.{name}\n    options: {{heading_level: 1}}" for name in FOLDERS}
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    for name in EXAMPLE_FILES:
        files.append(File.generated(config, f"{EXAMPLE}/{name}", abs_src_path=str(ROOT / EXAMPLE / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Draws the layers, and rewrites links out of docs/."""
    return _relinked(markdown.replace("<!-- layers -->", layers.drawn()))


def _moved(text: str) -> str:
    """Returns a page of the root as if it stood in docs/."""
    return re.sub(r"(\]\()(?!https?:|#)([^)]+)\)", lambda found: f"](../{found[2]})".replace("](../docs/", "]("), text)


def _relinked(text: str) -> str:
    return re.sub(r"\]\(\.\./([^)#]+)(#[^)]*)?\)", lambda found: f"]({_page(found[1], found[2] or '')})", text)


def _page(path: str, anchor: str) -> str:
    """Returns where the site has what the repository has at `path`."""
    parts = Path(normpath(path)).parts
    if parts[0] == "src":
        name = parts[2].removesuffix(".py") if len(parts) > 2 else ""
        module = ".".join(parts[1:]).removesuffix(".py")
        return f"api/{name}.md#{module}" if name in FOLDERS else f"api/stasc.md#stasc.{name}"
    if parts[0] == "conf":
        return "settings.md" + (f"#{parts[1]}" if len(parts) > 1 and not parts[1].endswith(".yaml") else "")
    if normpath(path) == EXAMPLE:
        return join(EXAMPLE, "report.html")
    return path.replace("README.md", "index.md") + anchor


def _settings() -> str:
    """Returns the page of all settings: the files of conf/ as they are."""
    conf = ROOT / "conf"
    groups = sorted({path.parent for path in conf.glob("*/*.yaml")})
    parts = ["# All settings", "Every setting with its default, as the files in `conf/` have them.", "## config"]
    parts.append(_code(conf / "config.yaml"))
    for group in groups:
        parts.append(f"## {group.name}")
        parts += [f"### {group.name}={path.stem}\n\n{_code(path)}" for path in sorted(group.glob("*.yaml"))]
    return "\n\n".join(parts)


def _code(path: Path) -> str:
    return f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```"
