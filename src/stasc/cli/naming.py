"""The variant's short name, such as `EIE-lora`, made of the `letter` or `suffix` in the YAML of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

PARTS = {
    **dict.fromkeys(("init", "filter", "start"), "letter"),
    **dict.fromkeys(("target", "loss", "finetune"), "suffix"),
}
KEYS = ("letter", "suffix")  # of an option's YAML; they name the variant, and are no settings of its class


def variant(settings: Mapping[str, Any], *groups: str) -> str:
    """Returns the name of a run's choices: the parts of these config groups, or of all that have one.

    An option without a letter or suffix is named after its class or function, in lower case.
    """
    name = ""
    for group in groups or PARTS:
        option, key = settings.get(group) or {}, PARTS[group]
        own = str(option.get("_target_") or "").rpartition(".")[2].lower()
        name += str(option.get(key, f"-{own}" if own and key == "suffix" else own))
    return name


def _variant(*groups: str, _root_: DictConfig) -> str:
    return variant(_root_, *groups)


OmegaConf.register_new_resolver("stasc.variant", _variant, replace=True)
