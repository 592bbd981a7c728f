"""Describes everything that decides a stage's content: the keys of its inputs, its settings, code and numerics.

The key of a stage is the hash of its description, which leaves out names, paths and tracking. So two runs share every
stage up to where they differ, and a stage whose description changes is computed anew.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import pkgutil
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from stasc.machine import durable, provenance
from stasc.machine.sealed import Damaged, digest, file_sha256, read_sealed, write_sealed
from stasc.records import Split
from stasc.settings import deciding
from stasc.settings.names import leaves
from stasc.settings.sections import Sampling

Description = dict[str, Any]

_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, configuration, tokenizer, template

# The modules and whole packages that can change what a stage computes. The code of a run's options counts besides.
_MODEL = (
    *("stasc.stages", "stasc.records", "stasc.tasks.prompt", "stasc.models", "stasc.prefix_tree"),
    *("stasc.machine.processor", "stasc.machine.memory", "stasc.engines.noise"),
)
_SAMPLING = (*_MODEL, "stasc.engines")
_SCORING = (
    *("stasc.choices.pairing", "stasc.records", "stasc.tasks.rewards", "stasc.tasks.text", "stasc.settings.calls"),
)
CODE = {
    "initial": _SAMPLING,
    "correction": _SAMPLING,
    "filter": (*_SCORING, "stasc.choices.filter"),  # adapts any filter to pairs
    "evaluation": _SCORING,
    "finetune": (*_MODEL, "stasc.training"),
}


@dataclass(frozen=True)
class StageDescriptions:
    """Describes the stages of one run by the settings that `deciding.STAGES` declares, and by their inputs and code."""

    settings: Mapping[str, Any]  # as composed
    base: str  # content digest of M_0's files
    four_bit: bool
    numerics: Mapping[str, Any]  # device, dtype, library versions
    template: Mapping[str, Any]  # chat template and its stop tokens
    rendered: Mapping[str, str]  # digests of the prompts of initial answers and corrections, with "?" for each text
    sampling: Mapping[str, Sampling]  # by split name, with evaluation.* in place of sampling.* where set
    batch: Mapping[str, int | None]  # evaluation.batch, by split name
    parts: Mapping[str, object]  # the options whose code counts, by group

    def m_0(self) -> Description:
        return {"weights": self.base, "four_bit": self.four_bit}

    def finetune(self, start: str, pairs: str, n: int) -> Description:
        inputs = {"start": start, "pairs": pairs, "n": n}
        return {**inputs, "template": self.template, "numerics": self.numerics, **self._read("finetune", self.settings)}

    def sampled(self, stage: str, model: str, split: Split, n: int, **inputs: str) -> Description:
        """Describes the stage `initial` or, with the key `y1` among its inputs, `correction`."""
        settings = {**self.settings, "sampling": asdict(self.sampling[split.name])}
        if size := self.batch[split.name]:
            settings["engine"] = {**self.settings["engine"], "batch_size": size}
        return {
            **inputs,
            "model": model,
            "split": split.name,
            "n": n,
            "questions": digest([[question.id, question.text] for question in split.questions]),
            "rendered": self.rendered[stage],
            "template": self.template,
            "numerics": self.numerics,
            **self._read(stage, settings),
        }

    def scored(self, stage: str, split: Split, y1: str, y2: str) -> Description:
        """Describes the stage `filter` or `evaluation`."""
        return {
            "y1": y1,
            "y2": y2,
            "split": split.name,
            "references": digest([[question.id, question.references] for question in split.questions]),
            "unicode": unicodedata.unidata_version,
            **self._read(stage, self.settings),
        }

    def _read(self, stage: str, settings: Mapping[str, Any]) -> Description:
        """Returns the settings that a stage reads as values, the code of the options among them, and its own code."""
        names = deciding.STAGES[stage].values
        kinds = {group: _kind(part) for group, part in self.parts.items() if group in names}
        own = {group for group, kind in kinds.items() if not kind.__module__.startswith("stasc.")}
        values = {
            name: value
            for name, value in leaves(settings).items()
            if deciding.reads(names, name, own=name.partition(".")[0] in own)
        }
        options = {f"{group} code": _option_code(kind, settings[group]) for group, kind in kinds.items()}
        return {**values, **options, "code": code(*CODE[stage])}


def _kind(part: object) -> type | FunctionType:
    """Returns the class of an option, or the function that it is."""
    kind: Any = part.func if isinstance(part, functools.partial) else part
    return kind if hasattr(kind, "__qualname__") else type(kind)


def _option_code(kind: type | FunctionType, settings: object) -> str:
    """Returns the digest of an option's code, that of its base classes and of the parts that its settings build."""
    bases = kind.__mro__ if isinstance(kind, type) else (kind,)
    return code(*dict.fromkeys([*(base.__module__ for base in bases), *_targets(settings)]))


def _targets(settings: object) -> Iterator[str]:
    """Yields the modules of all `_target_`s in settings, at any depth."""
    if isinstance(settings, Mapping):
        if isinstance(settings.get("_target_"), str):
            names = settings["_target_"].split(".")
            paths = (".".join(names[:end]) for end in range(len(names) - 1, 0, -1))
            yield from [path for path in paths if path in sys.modules][:1]
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for item in settings:
            yield from _targets(item)


def numerics(device: str, dtype: str, attention: str | None) -> Description:
    """Returns what decides the numbers beside settings: kind of device, dtype, attention, versions of libraries."""
    libraries = {name: version for name, version in provenance.versions().items() if name not in ("stasc", "python")}
    return {"device": device, "dtype": dtype, "attention": attention, **libraries}


def folder_digest(folder: Path, cache: Path) -> str:
    """Returns the sha256 over the names and contents of a model's files, whatever the folder is called.

    Hashing gigabytes takes seconds, so the file `cache` keeps digests by path, size and times of change.
    """
    before: dict[str, str] = {}
    if cache.exists():
        try:
            before = read_sealed(cache)
        except Damaged as damage:
            durable.quarantine(cache, f"store: {damage}")
    known, digests = dict(before), {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _MODEL_FILES and path.is_file():
            stat = path.stat()
            state = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            if state not in known:
                known[state] = file_sha256(path)
            digests[path.name] = known[state]
    if known != before:
        with suppress(OSError):  # a digest that is not cached is computed again
            write_sealed(cache, known)
    return digest(digests)


@functools.cache
def code(*modules: str) -> str:
    """Returns the digest of the modules' code, without comments and docstrings.

    It includes the user's modules that a module of the user's imports, but nothing that installed modules import. A
    module without source counts by its name. All are imported first: the code that runs hours later is then the code
    that was digested.
    """
    found: dict[str, str] = {}
    todo = [*itertools.chain(*map(_with_submodules, modules))]
    while todo:
        module = todo.pop()
        importlib.import_module(module)
        found[module] = _code(module)
        todo += [name for name in _own_imports(module) if name not in found]
    return digest(sorted(found.items()))


def _with_submodules(module: str) -> Iterator[str]:
    """Yields a module and, of a package of stasc, all modules in it."""
    yield module
    path = getattr(importlib.import_module(module), "__path__", None)
    if path and module.partition(".")[0] == "stasc":
        yield from (found.name for found in pkgutil.walk_packages(path, f"{module}."))


def _own_imports(module: str) -> Iterator[str]:
    """Yields the user's modules that a module of the user's imports."""
    if not _is_own(module):
        return
    here = sys.modules[module]
    for node in ast.walk(ast.parse(Path(str(here.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), here.__package__ or None)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from filter(_is_own_module, names)


def _is_own_module(name: str) -> bool:
    """Whether a name is that of a module of the user's. Imports it."""
    try:
        if importlib.util.find_spec(name) is None:
            return False
        importlib.import_module(name)
    except Exception:  # the name may be no module, or one that is missing or cannot be imported here
        return False
    return _is_own(name)


def _is_own(module: str) -> bool:
    """Whether a module is the user's: neither of stasc nor installed."""
    file = _source(module)
    if file is None or module.partition(".")[0] == "stasc":
        return False
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(file.is_relative_to(folder) for folder in installed)


def _source(module: str) -> Path | None:
    file = getattr(sys.modules[module], "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _code(module: str) -> str:
    if (file := _source(module)) is None:
        return module
    tree = ast.parse(file.read_bytes())
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def differences(made_of: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """Returns how a description differs from the nearest of others, as `name: theirs -> ours`; None without others."""
    ours, none = leaves(made_of), object()

    def apart(theirs: Mapping[str, Any]) -> list[str]:
        names = [name for name in {**theirs, **ours} if theirs.get(name, none) != ours.get(name, none)]
        return [f"{name}: {_shown(theirs.get(name))} -> {_shown(ours.get(name))}" for name in names]

    return min((apart(leaves(other)) for other in others), key=len, default=None)


def _shown(value: object) -> str:
    """Returns a value in few characters, a digest by its first twelve."""
    text = str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 40 else f"{text[:37]}..."
