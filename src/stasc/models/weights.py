"""Finds the weight files of a model's folder, and checks that they are complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel


def check_loaded(source: Path | str, report: Mapping[str, Any], names: Iterable[str]) -> None:
    """Checks transformers' loading report, as it fills missing weights with random numbers.

    Args:
        names: the names of the network's weights.
    Raises: ValueError unless config.json and the weights fit each other.
    """
    if missing := report["missing_keys"]:
        raise ValueError(
            f"model.path: {source} lacks {len(missing)} of its weights, e.g. {min(missing)}: "
            "expected a whole model, not one of several parts"
        )
    unfit = f"model.path: config.json of {source} does not fit its weights"
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        shapes = " where config.json says ".join("x".join(map(str, shape)) for shape in (stored, expected))
        raise ValueError(f"{unfit}: {name} is {shapes}; correct config.json, or take another copy of the model")
    kinds = {_layerless(name) for name in names}
    if beyond := sorted(name for name in report["unexpected_keys"] if _layerless(name) in kinds):
        raise ValueError(
            f"{unfit}: no layer of config.json has {beyond[0]}; correct num_hidden_layers there, or take another copy "
            "of the model"
        )


def _layerless(name: str) -> str:
    """Returns a weight's name with 0 as the number of its layer."""
    return ".".join("0" if part.isdecimal() else part for part in name.split("."))


def swap_weights(network: PreTrainedModel, folder: Path) -> bool:
    """Copies the weights of a folder into a network; False if their names, shapes or ties differ.

    The network may then hold a mixture of both.
    """
    files = weight_files(folder)
    own = network.state_dict()
    missing = {tensor.data_ptr() for tensor in own.values()}  # fewer than the names if weights are tied
    try:
        for path in files:
            with safe_open(path, framework="pt", device=str(network.device)) as file, torch.no_grad():
                for name in file.keys():  # noqa: SIM118 - it is not a dictionary
                    if name not in own or list(own[name].shape) != file.get_slice(name).get_shape():
                        return False
                    tensor, address = file.get_tensor(name), own[name].data_ptr()
                    if address not in missing and not torch.equal(own[name], tensor.to(own[name].dtype)):
                        return False  # weights that are tied here differ there
                    own[name].copy_(tensor)
                    missing.discard(address)
    except SafetensorError:
        return False
    return not missing


def weight_files(folder: Path) -> list[Path]:
    """Returns the files that transformers reads weights from: a single one, or the shards of an index."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    return [folder / name for name in sorted(set(names.values()))]
