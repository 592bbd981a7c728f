"""README and docs/ tell the truth about commands, options, files and layers."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from test_run import CONF, composed

import stasc
from stasc.dashboard.__main__ import _parser as dashboard_parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))
layers = importlib.import_module("layers")

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
README = PAGES["README.md"]
MADE = {"docs/settings.md"}  # by docs/site/hook.py, from conf/
LINES = [
    (page, line.split("  #")[0].strip())
    for page, text in PAGES.items()
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
RUNS = sorted({line for _, line in LINES if "-m stasc.run" in line and "--help" not in line})
LINKS = sorted(
    {(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text)}
)
FILES = {  # the blocks that are files, by their titles
    title: text
    for page in PAGES.values()
    for title, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, re.S)
}


GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "experiment") and any(folder.glob("*.yaml"))
}


def group_of(title: str) -> str:
    """The config group of an option's file."""
    return Path(title).parent.name


@pytest.mark.parametrize("line", RUNS)
def test_every_run_command_composes(line: str) -> None:
    words = shlex.split(line)
    overrides = words[words.index("stasc.run" if "stasc.run" in words else "stasc") + 1 :]
    settings = [word for word in overrides if "=" in word]  # not --cfg job
    swept = "--multirun" in overrides or "experiment=" in line
    for job in itertools.product(*(values(word) if swept else [word] for word in settings)):
        assert composed(*job).variant


@pytest.mark.parametrize("line", sorted({line for _, line in LINES if "-m stasc.dashboard" in line}))
def test_every_dashboard_command_is_one(line: str) -> None:
    words = shlex.split(line)
    assert dashboard_parser().parse_args(words[words.index("stasc.dashboard") + 1 :]).project


def values(override: str) -> list[str]:
    """The overrides that a swept one stands for."""
    key, _, swept = override.partition("=")
    return [f"{key}={value}" for value in swept.split(",")]


@pytest.mark.parametrize("target", sorted({word for _, line in LINES for word in re.findall(r"^make (\w+)", line)}))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:.* ## ", (ROOT / "Makefile").read_text(), re.M)


def test_the_option_table_is_conf() -> None:
    table = {group: re.findall(r"`([\w.]+)`", options) for group, options in rows(README)}
    assert {group: sorted(options) for group, options in table.items() if group in GROUPS} == GROUPS


def test_the_defaults_named_first_are_the_defaults() -> None:
    table = {group: options[2:].split("`")[1] for group, options in rows(README) if options.startswith("**`")}
    defaults = dict(re.findall(r"^  - (\w+): (\w+)$", (CONF / "config.yaml").read_text(), re.M))
    assert {group: option for group, option in table.items() if group in GROUPS} == defaults


def rows(text: str) -> list[tuple[str, str]]:
    """The first two cells of the tables' rows whose first cell is a name."""
    return re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.M)


SECTIONS = {  # the sections about a group's options, by its name
    group: section
    for page in PAGES.values()
    for group, section in re.findall(r"^## [^\n]*: `(\w+)`$(.*?)(?=^## |\Z)", page, re.M | re.S)
    if (CONF / group).is_dir()
}


@pytest.mark.parametrize("group", sorted(SECTIONS))
def test_the_table_of_a_choice_has_all_its_options(group: str) -> None:
    (table, *_) = re.findall(r"(?:^\|.*\n)+", SECTIONS[group], re.M)
    options = {option for cell in re.findall(r"^\| (.*?) \|", table, re.M) for option in re.findall(r"`(\w+)`", cell)}
    assert options | {"none"} == {path.stem for path in (CONF / group).glob("*.yaml")} | {"none"}


def test_every_option_named_in_the_text_exists() -> None:
    named = {match for text in PAGES.values() for match in re.findall(r"`(\w+)=(\w+)`", text)}
    options = {(group, option) for group, option in named if group in (*GROUPS, "experiment")}
    assert options
    assert {one for one in options if not (CONF / one[0] / f"{one[1]}.yaml").exists()} == set()


def test_every_setting_named_in_the_text_exists() -> None:
    sections = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    settings = {group: {*section} for group, section in sections.items() if isinstance(section, dict)}
    for group, options in GROUPS.items():
        files = [yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8")) for option in options]
        settings[group] = {name for file in files for name in file or ()}
    texts = [text for page, text in PAGES.items() if page != "CHANGELOG.md"]
    named = {match for text in texts for match in re.findall(r"`'?(\w+)\.(\w+)(?:=[^`]*)?`", text)}
    known = {(group, name) for group, name in named if group in settings and group != "hydra"}
    assert known and {one for one in known if one[1] not in settings[one[0]]} == set()


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    name = str(target.resolve().relative_to(ROOT))
    assert target.exists() or name in MADE
    if anchor and name in PAGES:
        assert anchor in anchors(PAGES[name])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_readme_fits_on_few_screens() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_page_is_reachable(page: str) -> None:
    """From the README, over links; BENCHMARKS.md is written by a command."""
    reached, todo = set(), ["README.md"]
    while todo:
        here = todo.pop()
        reached.add(here)
        linked = {str(((ROOT / here).parent / link.partition("#")[0]).resolve()) for one, link in LINKS if one == here}
        todo += [name for name in PAGES if str(ROOT / name) in linked and name not in reached]
    assert page in reached


@pytest.mark.parametrize("title", [title for title in FILES if title.endswith(".yaml") and group_of(title) in GROUPS])
def test_the_files_that_the_pages_show_work(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option shown composes from a folder of its own, and its class or function takes its settings."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder, group, option = Path(title).with_suffix("").parts
    cfg = composed(f"hydra.searchpath=[file://{tmp_path / folder}]", f"{group}={option}")[group]
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    takes = inspect.signature(get_object(settings["_target_"])).parameters
    for key in {"letter", "suffix"} - {*takes}:
        settings.pop(key, None)
    assert instantiate(settings, _convert_="all")


def test_the_layers_are_the_contract_and_name_every_folder() -> None:
    drawn = layers.drawn()
    assert sorted(name for layer in layers.layers() for name in layer) == layers.members()
    folders = {path.parent.name: path for path in (ROOT / "src" / "stasc").glob("*/__init__.py")}
    for name, path in folders.items():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split()
        assert f"<b>{name}/</b>" in drawn
        assert len(first) >= 3, f"{name} has no docstring of one sentence"
        assert layers.purpose(name).split()[:3] == first[:3]
        assert layers.purpose(name).replace("&", "&amp;") in drawn.replace("&#x27;", "'").replace("&quot;", '"')


def test_the_layers_are_drawn_from_the_top_down() -> None:
    drawn = layers.drawn()
    places = [drawn.index(f"<b>{layer[0]}") for layer in layers.layers()]
    assert places == sorted(places) and layers.layers()[0][0] == "run"


def test_the_page_on_the_inside_shows_the_layers() -> None:
    assert "<!-- layers -->" in PAGES["docs/inside.md"]


def test_the_changelog_has_every_new_target() -> None:
    """Every `_target_` of conf/ is in the table of new names, unless it never had another one."""
    new = re.findall(r"\| `([\w.]+\.)\*?(\w*)` \|$", PAGES["CHANGELOG.md"], re.M)
    for path in CONF.rglob("*.yaml"):
        for target in re.findall(r"_target_: (stasc\S+)", path.read_text(encoding="utf-8")):
            assert target.startswith((*("".join(name) for name in new), "stasc.tracking.", "stasc.training.losses.")), (
                target
            )


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == stasc.__version__
    assert "2503.08681" in citation["references"][0]["url"]


def test_the_site_lists_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.removeprefix("docs/").replace("README.md", "index.md")
        assert re.search(rf"^ +- (Overview: )?{re.escape(name)}$", nav, re.M), name
