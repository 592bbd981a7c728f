"""What decides a stage's content, and so its key: the keys of its inputs, its settings, the code and its numerics.

A key is the hash of such a description. Left out is what changes no result: names, paths, tracking. So two runs share
every stage up to where they differ, and nothing that was made otherwise is taken for the same.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc.machine import provenance
from stasc.machine.sealed import digest
from stasc.records import Split
from stasc.settings.sections import Sampling
from stasc.settings.table import INERT, leaves
from stasc.tasks.prompt import Prompt

Description = dict[str, Any]


# The code that can change what a stage computes, besides that of a run's options: modules, and packages whole.
_COMPUTING = (
    *("stasc.stages", "stasc.records", "stasc.tasks.prompt", "stasc.models", "stasc.prefix_tree"),
    *("stasc.machine.processor", "stasc.machine.oom", "stasc.machine.cgroup"),
)
CODE = {
    "sampling": (*_COMPUTING, "stasc.engines"),
    "finetune": (*_COMPUTING, "stasc.training"),
    "scoring": ("stasc.choices.pairing", "stasc.records", "stasc.tasks.rewards", "stasc.tasks.text"),
}


@dataclass(frozen=True)
class Recipes:
    """Describes each stage of one run."""

    settings: Mapping[str, Any]  # as composed
    base: str  # content digest of M_0's files
    four_bit: bool
    numerics: Mapping[str, Any]  # device, dtype, library versions
    template: Mapping[str, Any]  # of the chat, with its stop tokens
    rendered: Mapping[str, str]  # digests of the two turns, asked of no question in particular
    sampling: Mapping[str, Sampling]  # by split name
    batch: Mapping[str, int]  # answers sampled together, by split name
    parts: Mapping[str, object]  # reward, filter, target, finetune, engine, prompt: for their code

    def m_0(self) -> Description:
        return {"weights": self.base, "four_bit": self.four_bit}

    def initial(self, model: str, split: Split, n: int) -> Description:
        description = self._sampled(model, split, n, self.sampling[split.name].n_init)
        return {**description, "rendered": self.rendered["initial"]}

    def correction(self, model: str, split: Split, y1: str, n: int) -> Description:
        description = self._sampled(model, split, n, self.sampling[split.name].n_corr)
        description |= {"y1": y1, "correction_prompt": self.settings["prompt"].get("correction")}
        return {**description, "rendered": self.rendered["correction"]}

    def filter(self, split: Split, y1: str, y2: str) -> Description:
        return {
            **self._scored(split, y1, y2),
            "pairing": self.settings["pairing"],
            "filter": self._part("filter"),
        }

    def evaluation(self, split: Split, y1: str, y2: str) -> Description:
        return {**self._scored(split, y1, y2), "correct_at": self.settings["correct_at"]}

    def finetune(self, start: str, filter_: str, n: int) -> Description:
        return {
            "start": start,
            "pairs": filter_,
            "prompt": self._asked(),
            "n": n,
            "seed": self.settings["seed"],
            "target": self._part("target"),
            "finetune": self._part("finetune"),
            "template": self.template,
            "numerics": self.numerics,
            "code": code(*CODE["finetune"]),
        }

    def _sampled(self, model: str, split: Split, n: int, samples: int) -> Description:
        sampling = self.sampling[split.name]
        return {
            "model": model,
            "split": split.name,
            "n": n,
            "seed": self.settings["seed"],
            "questions": digest([[question.id, question.text] for question in split.questions]),
            "prompt": self._asked(),
            "template": self.template,
            "samples": samples,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "stop": sampling.stop,
            "answers": "with the ids that were sampled",  # as they are stored
            "engine": {**self._part("engine"), "batch_size": self.batch[split.name]},
            "numerics": self.numerics,
            "code": code(*CODE["sampling"]),
        }

    def _asked(self) -> Description:
        """Returns the prompt settings that an initial answer depends on."""
        prompt = self._part("prompt")
        if type(self.parts["prompt"]) is Prompt:  # one of your own may use any setting in any turn
            prompt = {name: prompt[name] for name in prompt if name not in ("correction", "marker")}
        return prompt

    def _scored(self, split: Split, y1: str, y2: str) -> Description:
        return {
            "y1": y1,
            "y2": y2,
            "split": split.name,
            "references": digest([[question.id, question.references] for question in split.questions]),
            "reward": self._part("reward"),
            "reward_errors": self.settings["reward_errors"],
            "unicode": unicodedata.unidata_version,
            "code": code(*CODE["scoring"]),
        }

    def _part(self, group: str) -> Description:
        """An option: its settings but for its names, and its code with that of the classes it derives from."""
        settings = {name: value for name, value in self.settings[group].items() if f"{group}.{name}" not in INERT}
        part = self.parts[group]
        kind = part.func if isinstance(part, functools.partial) else part if callable_itself(part) else type(part)
        bases = kind.__mro__ if isinstance(kind, type) else (kind,)
        modules = [*(base.__module__ for base in bases), *_targets(settings)]
        return {**settings, "code": code(*dict.fromkeys(modules))}


def _targets(settings: object) -> Iterator[str]:
    """The modules of all that settings have built, at any depth."""
    if isinstance(settings, Mapping):
        if isinstance(settings.get("_target_"), str):
            names = settings["_target_"].split(".")
            paths = (".".join(names[:end]) for end in range(len(names) - 1, 0, -1))
            yield from [path for path in paths if path in sys.modules][:1]
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for item in settings:
            yield from _targets(item)


def callable_itself(part: object) -> bool:
    """Whether a part is a plain function or a class, rather than an object with settings."""
    return hasattr(part, "__qualname__")


def numerics(device: str, dtype: str, attention: str | None) -> Description:
    """What decides the numbers beside the settings: kind of device, dtype, attention, versions of the libraries."""
    libraries = {name: version for name, version in provenance.versions().items() if name not in ("stasc", "python")}
    return {"device": device, "dtype": dtype, "attention": attention, **libraries}


@functools.cache
def code(*modules: str) -> str:
    """Digest of the modules' code, without comments and docstrings. A module without source counts by its name.

    With a module of the user's come those of theirs that it imports; what is installed counts by its name. They are
    imported first: what runs hours later is then what was read now.
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
    """A module, and all modules in it where it is a package of ours."""
    yield module
    path = getattr(importlib.import_module(module), "__path__", None)
    if path and module.partition(".")[0] == "stasc":
        yield from (found.name for found in pkgutil.walk_packages(path, f"{module}."))


def _own_imports(module: str) -> Iterator[str]:
    """The modules that a module of the user's imports, if they are the user's too."""
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
    """Whether a name is that of a module of the user's, which is then imported."""
    try:
        if importlib.util.find_spec(name) is None:
            return False
        importlib.import_module(name)
    except Exception:  # it may be no module, or one that is not there, or that cannot be imported here
        return False
    return _is_own(name)


def _is_own(module: str) -> bool:
    """Whether a module is neither ours nor installed."""
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not file.endswith(".py") or module.partition(".")[0] == "stasc":
        return False
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(folder) for folder in installed)


def _code(module: str) -> str:
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not file.endswith(".py"):
        return module
    tree = ast.parse(Path(file).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def differences(made_of: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """What sets a description apart from the nearest of others, as `name: theirs -> ours`; None if there is none."""
    ours = leaves(made_of)

    def apart(other: Mapping[str, Any]) -> list[str]:
        theirs = leaves(other)
        names = [name for name in {**theirs, **ours} if theirs.get(name, _NONE) != ours.get(name, _NONE)]
        return [f"{name}: {_shown(theirs.get(name))} -> {_shown(ours.get(name))}" for name in names]

    return min((apart(other) for other in others), key=len, default=None)


_NONE = object()


def _shown(value: object) -> str:
    """In few characters: of a digest, its beginning."""
    text = str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 40 else f"{text[:37]}..."
