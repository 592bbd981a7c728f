"""Names of settings, and of folders that settings name.

Unknown settings are refused, and so are folder names that could lead elsewhere or that some file systems refuse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

GROUPS = (
    *("init", "filter", "start", "target", "finetune", "loss", "model"),
    *("dataset", "prompt", "reward", "engine", "tracking"),
)
NAMING = {  # the groups that name a variant, and the key of an option's YAML that holds its part of the name
    **dict.fromkeys(("init", "filter", "start"), "letter"),
    **dict.fromkeys(("target", "loss", "finetune"), "suffix"),
}
SYNONYMS = {  # names in transformers, TRL, vLLM, lm-eval and W&B; a value with a space is a message
    **dict.fromkeys(("lr", "eta"), "finetune.learning_rate"),
    **dict.fromkeys(("bs", "per_device_train_batch_size", "train_batch_size"), "finetune.batch_size"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "evaluation.batch"),
    **dict.fromkeys(("n_epochs", "num_epochs", "num_train_epochs", "epoch"), "finetune.epochs"),
    **dict.fromkeys(("optim", "optimiser"), "finetune.optimizer"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "finetune.schedule"),
    **dict.fromkeys(("gradient_accumulation_steps", "micro_batch"), "finetune.micro_batch_size"),
    **dict.fromkeys(("loss_per", "loss_type", "reduction"), "loss.per"),
    **dict.fromkeys(("r", "lora_r"), "finetune.rank, with finetune=lora"),
    **{f"lora_{name}": f"finetune.{name}, with finetune=lora" for name in ("rank", "alpha", "dropout")},
    **{f"use_{name}": f"finetune.{name}, with finetune=lora" for name in ("dora", "rslora")},
    **dict.fromkeys(("load_in_4bit", "quantization"), "4-bit weights are finetune=qlora"),
    **dict.fromkeys(("max_tokens", "max_length", "max_gen_toks", "max_completion_length"), "sampling.max_new_tokens"),
    **dict.fromkeys(("temp",), "sampling.temperature"),
    **dict.fromkeys(("top_k", "min_p"), "sampling.top_p truncates the distribution"),
    **dict.fromkeys(("n", "num_return_sequences", "num_generations", "n_samples", "num_samples"), "sampling.n_init"),
    **dict.fromkeys(("output_dir", "output_path", "out_dir", "logging_dir"), "hydra.run.dir"),
    **dict.fromkeys(("model_name_or_path", "model_name", "model_id", "pretrained"), "model.path"),
    **dict.fromkeys(("torch_dtype", "precision"), "model.dtype"),
    **dict.fromkeys(("bf16", "fp16"), "give model.dtype=bfloat16, or float16"),
    **dict.fromkeys(("attn_implementation",), "model.attention"),
    **dict.fromkeys(("chat_template_kwargs", "enable_thinking"), "model.template_args"),
    **dict.fromkeys(("n_iterations", "num_iterations", "rounds", "n_rounds"), "iterations"),
    **dict.fromkeys(("limit", "num_eval_samples"), "dataset.n_test"),
    **dict.fromkeys(("train_size", "max_train_samples"), "dataset.n_train"),
    **dict.fromkeys(("dataset_name", "tasks", "data"), "a dataset is chosen by dataset=..., a file by dataset.path"),
    **dict.fromkeys(("system_prompt", "system_instruction"), "prompt.system"),
    **dict.fromkeys(("wandb", "report_to", "use_wandb"), "W&B is tracking=wandb or tracking=off"),
    **{f"wandb_{name}": f"tracking.{name}" for name in ("project", "entity")},
    **dict.fromkeys(("run_name", "experiment_name"), "sweep.name"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DECLARED = "declared.json"  # in a sweep's folder: the seeds and swept values of its first command


def check_name(setting: str, value: object) -> str:
    """Returns `value` as text. Raises: ValueError naming the setting unless it can be the name of a folder."""
    text = str(value)
    if value is None or not _NAME.fullmatch(text):
        shown = "null" if value is None else ascii(text)
        raise ValueError(
            f"{setting}={shown if len(shown) <= 80 else shown[:80] + '...'}: expected a name of at most 64 letters, "
            "digits, dots, hyphens and underscores, the first of which is a letter or a digit"
        )
    return text


def check_inside(folder: Path, root: Path) -> None:
    """Checks that `folder` lies in `root` once symbolic links are followed. Raises: ValueError if not."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{folder} leads to {folder.resolve()}, which is not in {root.resolve()}: remove the symbolic link, "
            "or set hydra.sweep.dir to the folder that you mean"
        )


def check_known(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Checks that all settings are `known`. A dotted name, such as sweep.name, admits no other setting of its group.

    Raises: ValueError naming an unknown setting and the nearest known one, or a missing setting.
    """
    closed = {name.partition(".")[0] for name in known if "." in name}
    unknown = {name for name in settings if name not in known}
    unknown |= {f"{group}.{name}" for group in closed for name in settings.get(group) or ()} - {*known}
    if unknown:
        every = leaves(settings)
        mine = [name for name in every if any(f"{name}.".startswith(f"{one}.") for one in unknown)]
        raise ValueError(no_such_setting((mine or sorted(unknown))[0], [name for name in every if name not in mine]))
    if missing := [name for name in known if "." not in name and name not in settings]:
        raise ValueError(f"{missing[0]} is missing from the settings: leave out ~{missing[0]}, or give another one")


def no_such_setting(name: str, known: Collection[str], value: str = "") -> str:
    """Returns the message for an unknown setting that was given this value."""
    group, _, last = name.rpartition(".")
    if near := same_last(name, known):
        return f"{name}: no such setting; did you mean {' or '.join(near)}?"
    if (hint := SYNONYMS.get(last.lower())) is not None:
        return f"{name}: no such setting; {hint if ' ' in hint else f'did you mean {hint}?'}"
    if not (one := nearest(name, [*known, "experiment"])):
        return f"{name}: no such setting; --cfg job prints all there are"
    of_a_group = value and one not in known and not group
    return f"{name}: no such setting; did you mean {one}{f'={value}' if of_a_group else ''}?"


def same_last(name: str, known: Collection[str]) -> list[str]:
    """Returns the nearest known settings of the same last name: one if its group is similar, else at most three."""
    group, _, last = name.rpartition(".")
    same = [one for one in dict.fromkeys(known) if one.rpartition(".")[2] == last and one != name]
    if group and (near := get_close_matches(name, same, n=1, cutoff=0.8)):
        return near
    return get_close_matches(name, same, n=3, cutoff=0.0)


def nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known setting or group that was probably meant; None if none is near.

    It has the same last name, or a similar spelling and, if the group is known, the same group.
    """
    group, _, last = name.rpartition(".")
    every = dict.fromkeys([*known, *(one.partition(".")[0] for one in known)])
    if same := [one for one in every if one.rpartition(".")[2] == last]:
        return get_close_matches(name, same, n=1, cutoff=0.0)[0]
    mates = {one.rpartition(".")[2]: one for one in every if one.startswith(f"{group}.")} if group else {}
    near = get_close_matches(last, mates, n=1) if mates else get_close_matches(name, every, n=1)
    return mates.get(near[0], near[0]) if near else None


def chosen_options(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, str]:
    """Returns the option of each group: the `chosen` one or, if unknown, the name of its class in lower case."""
    return {
        name: str(chosen.get(name) or str(part["_target_"]).rpartition(".")[2].lower())
        for name, part in settings.items()
        if isinstance(part, Mapping) and "_target_" in part and name != "tracking"
    }


def model_name(settings: Mapping[str, Any], chosen: Mapping[str, str]) -> str:
    """Returns the model's name in run names: its option, or for model=custom the last part of its path."""
    path = str(settings["model"].get("path") or "")
    return path.rstrip("/").rpartition("/")[2] if chosen["model"] == "custom" and path else chosen["model"]


def variant_part(settings: Mapping[str, Any], group: str) -> str:
    """Returns an option's part of the variant's name: its letter or suffix, or else its class or function's name."""
    option, key = settings.get(group) or {}, NAMING[group]
    own = str(option.get("_target_") or "").rpartition(".")[2].lower()
    return str(option.get(key, f"-{own}" if own and key == "suffix" else own))


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings by their dotted names. `model.template_args` and lists are single settings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and prefix + name != "model.template_args":
            flat |= leaves(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
