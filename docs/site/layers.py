"""Draws the layers of the package from the import contract in pyproject.toml. Needs the standard library only."""

from __future__ import annotations

import ast
import html
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "stasc"


def layers() -> list[list[str]]:
    """Returns the names of folders and modules, layer by layer, the highest layer first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = (one for one in contracts if one["type"] == "layers")
    return [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]


def members() -> list[str]:
    """Returns the names of all folders and modules of the package, sorted."""
    folders = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    return sorted(folders + [path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"])


def is_folder(name: str) -> bool:
    """Tells a folder from a module."""
    return (PACKAGE / name).is_dir()


def purpose(name: str) -> str:
    """Returns the first sentence of the docstring of a folder or module."""
    path = PACKAGE / name / "__init__.py" if is_folder(name) else PACKAGE / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.?!])\s", " ".join(text.split("\n\n")[0].split()))[0]


def link(name: str) -> str:
    """Returns the address of the API page of a folder or module."""
    return f"api/{name}.html" if is_folder(name) else f"api/stasc.html#stasc.{name}"


def drawn() -> str:
    """Returns the layers as an HTML table: a row per layer, the highest first."""
    rows = []
    for layer in layers():
        boxes = (
            f'<a href="{link(name)}"><b>{name}{"/" if is_folder(name) else ".py"}</b>'
            f"<span>{html.escape(purpose(name))}</span></a>"
            for name in layer
        )
        rows.append(f"<tr><td><div>{''.join(boxes)}</div></td></tr>")
    return f'<table class="layers">{"".join(rows)}</table>'
