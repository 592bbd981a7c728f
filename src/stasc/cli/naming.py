"""The variant's short name, such as `EIE-lora`, made of the `letter` or `suffix` in the YAML of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stasc.settings.names import NAMING, variant_part

KEYS = {*NAMING.values()}  # of an option's YAML; they name the variant, and are no settings of its class


def variant(settings: Mapping[str, Any], *groups: str) -> str:
    """Returns the name of a run's choices: the parts of these config groups, or of all that have one."""
    return "".join(variant_part(settings, group) for group in groups or NAMING)


def _variant(*groups: str, _root_: DictConfig) -> str:
    return variant(_root_, *groups)


OmegaConf.register_new_resolver("stasc.variant", _variant, replace=True)
