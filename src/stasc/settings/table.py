"""Which setting decides which stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stasc.machine.sealed import digest

SAMPLED = ("initial", "correction")


SCORED = ("filter", "evaluation")


TRAINING = (*SAMPLED, "filter")


HELD_OUT = (*SAMPLED, "evaluation")


QUESTIONS = (*SAMPLED, *SCORED)


MODEL = (*SAMPLED, "finetune")


def _settings(group: str, names: str, *stages: str) -> dict[str, tuple[str, ...]]:
    return {group + name: stages for name in names.split()}


# Every setting, and the stages that it describes. `run`: it decides which stages there are. What comes from a file
# counts by its content, and a stage that has another one's key changes with it. A setting that is in neither table,
# such as one of your own reward's, is in the run's key and in those of the stages of its part.
DECIDING: dict[str, tuple[str, ...]] = {
    **_settings("", "seed", *MODEL),
    **_settings("", "iterations patience init._target_ start._target_", "run"),
    **_settings("", "target._target_", "finetune"),  # one that samples less has fewer stages as well
    **_settings("", "target.marker", "filter", "finetune"),
    **_settings("", "pairing filter._target_ filter.margin filter.correct_at", "filter"),
    **_settings("", "correct_at", "evaluation"),
    **_settings("", "reward_errors prompt.marker reward._target_ reward.scope reward.marker", *SCORED),
    **_settings("", "reward.normalisation", *SCORED),
    **_settings("dataset.", "_target_ path revision id question seed min_population test_countries", *QUESTIONS),
    **_settings("dataset.", "answer answer_pattern", *SCORED),
    **_settings("dataset.", "n_train train_path", *TRAINING),
    **_settings("dataset.", "n_validation n_test validation_path test_path", *HELD_OUT),
    **_settings("model.", "_target_ path revision device dtype attention", *MODEL),
    **_settings("model.", "chat_template template_args date", *MODEL),
    **_settings("prompt.", "_target_ system initial", *MODEL),  # training on references samples nothing
    **_settings("", "prompt.correction sampling.n_corr", "correction"),
    **_settings("", "sampling.n_init", "initial"),
    **_settings("sampling.", "temperature top_p max_new_tokens stop", *SAMPLED),
    **_settings("", "evaluation.n_init", "initial"),
    **_settings("evaluation.", "temperature top_p max_new_tokens batch", *SAMPLED),
    **_settings("evaluation.", "split", *HELD_OUT),
    **_settings("engine.", "_target_ batch_size prefill_tokens compiled", *SAMPLED),
    **_settings(  # one that holds M_0 in 4 bits makes it another model
        "finetune.", "_target_ learning_rate epochs batch_size micro_batch_size optimizer schedule", "finetune"
    ),
    **_settings("finetune.", "micro_batch_tokens packing shuffle", "finetune"),
    **_settings("loss.", "_target_ per", "finetune"),
    **_settings("finetune.", "warmup_ratio weight_decay max_grad_norm gradient_checkpointing", "finetune"),
    **_settings("finetune.", "on_nonfinite max_skipped_steps truncated", "finetune"),
    **_settings("finetune.", "max_steps steps_match", "finetune"),
    **_settings("finetune.", "rank alpha dropout target_modules dora rslora", "finetune"),
}


INERT = frozenset(
    {
        *("variant", "baseline", "init.letter", "filter.letter", "start.letter", "target.suffix", "finetune.suffix"),
        "dataset.on_bad_row",  # decides whether there is a run; what is left out shows in the questions
        *("sweep.name", "store.dir", "store.explain", "store.keep_models", "store.resume", "model.cache_dir"),
        *(f"tracking.{name}" for name in ("_target_", "project", "entity", "group", "name", "job_type")),
        *("tracking.mode", "tracking.tags", "tracking.sample_pairs"),
    }
)


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings by their dotted names. `model.template_args` and lists are single settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and prefix + name != "model.template_args":
            flat |= leaves(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide results, by their dotted names."""
    return {name: value for name, value in leaves(settings).items() if name not in INERT}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Names a job's folder: the hash of its settings that decide results."""
    return digest(deciding(settings))[:8]
