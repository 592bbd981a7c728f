"""Declares which settings decide which stage: keys are built from it, and reports compare runs by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from stasc.machine.sealed import digest
from stasc.settings.names import NAMING, leaves


class Reads(NamedTuple):
    """The settings that a stage reads. A group stands for all its settings but those that some stage names.

    The stage's description holds `values` as they are. Of `content`, it holds what they lead to: the questions of a
    dataset, the numerics and the chat template of a model, a marker that another setting takes over.
    """

    values: frozenset[str]
    content: frozenset[str]


def _reads(values: str, content: str) -> Reads:
    return Reads(frozenset(values.split()), frozenset(content.split()))


_TRAIN = "dataset.n_train dataset.train_path"
_HELD_OUT = "dataset.n_validation dataset.validation_path dataset.n_test dataset.test_path evaluation.split"
_SAMPLED = f"model dataset {_TRAIN} {_HELD_OUT}"
_SCORED = "dataset dataset.answer dataset.answer_pattern prompt.marker"

STAGES = {
    "initial": _reads("seed prompt sampling sampling.n_init engine", _SAMPLED),
    "correction": _reads("seed prompt prompt.correction sampling sampling.n_corr engine", _SAMPLED),
    "filter": _reads("reward reward_errors pairing filter", f"{_SCORED} {_TRAIN} target.marker"),
    "evaluation": _reads("reward reward_errors correct_at", f"{_SCORED} {_HELD_OUT}"),
    "finetune": _reads(
        "seed prompt target target.marker finetune loss", "model"
    ),  # gold answers depend on the prompt here only
    "run": _reads("", "iterations patience init start"),  # no stage of its own: decides which stages a run has
}
INERT = frozenset(  # settings and groups that decide no result
    (
        *(f"{group}.{key}" for group, key in NAMING.items()),
        *("variant", "baseline", "model.cache_dir", "store", "sweep", "tracking"),
        "dataset.on_bad_row",  # skipped rows show in the questions
    )
)
_NAMED = frozenset[str]().union(*(stage.values | stage.content for stage in STAGES.values()))


def reads(names: Collection[str], setting: str, *, own: bool = False) -> bool:
    """Whether the names that a stage declares include a setting; `own` options may read all settings of their group."""
    return setting in names or (_group(setting) in names and (own or setting not in _NAMED) and not is_inert(setting))


def is_inert(setting: str) -> bool:
    """Whether a setting decides no result."""
    return setting in INERT or _group(setting) in INERT


def stages_of(setting: str) -> frozenset[str]:
    """Returns the stages that a setting decides. `evaluation.*` counts as the sampling settings that it overrides."""
    group, _, name = setting.partition(".")
    if group == "evaluation" and name != "split":
        setting = "engine.batch_size" if name == "batch" else f"sampling.{name}"
    return frozenset(stage for stage, (values, content) in STAGES.items() if reads(values | content, setting))


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that decide results, by their dotted names."""
    return {name: value for name, value in leaves(settings).items() if not is_inert(name)}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Returns the hash of the settings that decide results, as in the name of a job's folder."""
    return digest(deciding(settings))[:8]


def _group(setting: str) -> str:
    return setting.partition(".")[0]
