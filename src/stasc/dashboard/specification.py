"""Writes and checks a report's specification: the JSON that W&B's library sends."""

from __future__ import annotations

import json
import warnings
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.reports.v2 import internal


def specification(report: wr.Report) -> bytes:
    """Returns the report as JSON, with the `spec` that `report.save()` sends."""
    return _json(report._to_model())  # the library has no public name for it


def check(data: bytes) -> None:
    """Checks that W&B's library reads a specification without loss. Raises: ValueError."""
    try:
        given = _read(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # the library warns about blocks that it cannot read
            model = internal.ReportViewspec.model_validate(given)
    except (ValueError, UserWarning) as error:
        raise ValueError(f"no W&B report: {error}") from error
    for part in _parts(model.spec):
        if isinstance(part, internal.UnknownBlock | internal.UnknownPanel):
            raise ValueError(f"no W&B report: W&B's library does not know the part {part!r:.200}")
    if not model.spec.blocks or _read(_json(model)) != given:
        raise ValueError("no W&B report: W&B's library reads it differently")


def _read(data: bytes) -> Any:
    """Parses JSON without empty lists of comments, which the library adds to texts when it reads them."""
    return json.loads(
        data, object_hook=lambda part: {k: v for k, v in part.items() if k != "inlineComments" or v != []}
    )


def _json(model: internal.ReportViewspec) -> bytes:
    return model.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


def _parts(spec: internal.Spec) -> list[Any]:
    """Returns all blocks and the panels in them."""
    grids = [block for block in spec.blocks if isinstance(block, internal.PanelGrid)]
    return [*spec.blocks, *(panel for grid in grids for panel in grid.metadata.panel_bank_section_config.panels)]
