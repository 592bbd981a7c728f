"""No line of the package can execute data that it reads. Canaries of each kind are in the tests of the readers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stasc

SOURCES = sorted(Path(stasc.__file__).parent.rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
FUNCTIONS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.UnsafeLoader"),
    *("yaml.full_load_all", "yaml.FullLoader", "yaml.Loader"),
}
NEEDED = {"torch.load": ("weights_only", True)}
ONLY = {"allow_pickle": False, "shell": False, "weights_only": True}  # the values these arguments may have anywhere


def unsafe(code: str) -> list[str]:
    """Returns the calls and imports in `code` that could execute data, as `line: what`."""
    tree = ast.parse(code)
    full = dict(_imports(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [(node.lineno, name) for name in imported if name.split(".")[0] in MODULES]
        if isinstance(node, ast.Name | ast.Attribute):
            name = _full_name(node, full)
            if name in FUNCTIONS or (isinstance(node, ast.Name) and name in BUILTINS):
                found.append((node.lineno, name))
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = _full_name(node.func, full)
            argument, value = NEEDED.get(name, (None, None))
            if argument and given.get(argument) != str(value):
                found.append((node.lineno, f"{name} without {argument}={value}"))
            found += [
                (node.lineno, f"{argument}={given[argument]}")
                for argument, allowed in ONLY.items()
                if given.get(argument, str(allowed)) != str(allowed)
            ]
    return [f"{line}: {what}" for line, what in dict.fromkeys(found)]


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields imported names with their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.asname, name.name) for name in node.names if name.asname)
        if isinstance(node, ast.ImportFrom):
            yield from ((name.asname or name.name, f"{node.module}.{name.name}") for name in node.names)


def _full_name(node: ast.AST, full: dict[str, str]) -> str:
    root, dot, rest = ast.unparse(node).partition(".")
    return full.get(root, root) + dot + rest


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_that_is_read_can_be_run(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("import dill as json", "dill"),
        ("from marshal import loads", "marshal"),
        ("from joblib.numpy_pickle import load", "joblib.numpy_pickle"),
        ("import os, shelve", "shelve"),
        ("eval(text)", "eval"),
        ("run = exec", "exec"),
        ("compile(text, '', 'exec')", "compile"),
        ("__import__(name)", "__import__"),
        ("import torch\ntorch.load(path)", "torch.load without weights_only=True"),
        ("import torch as t\nt.load(path, weights_only=setting)", "torch.load without weights_only=True"),
        ("from torch import load\nload(path, weights_only=False)", "weights_only=False"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("from yaml import unsafe_load as load\nload(text)", "yaml.unsafe_load"),
        ("import yaml\nread = yaml.full_load", "yaml.full_load"),
        ("import subprocess\nsubprocess.run(command, shell=True)", "shell=True"),
        ("import subprocess\nsubprocess.run(command, shell=setting)", "shell=setting"),
        ("import os\nos.system(command)", "os.system"),
        ("from os import popen\npopen(command)", "os.popen"),
    ],
)
def test_that_test_sees_what_could(code: str, what: str) -> None:
    assert any(found.endswith(what) for found in unsafe(code)), unsafe(code)


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile(pattern)",
        "model.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(command, shell=False)",
        "import yaml\nyaml.safe_load(text)",
        "json.load(file)",
    ],
)
def test_that_test_passes_what_could_not(code: str) -> None:
    assert unsafe(code) == []
