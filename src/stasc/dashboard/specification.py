"""The specification of a W&B report: a report as JSON, and a check that W&B's library reads it."""

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
    grids = [block for block in model.spec.blocks if isinstance(block, internal.PanelGrid)]
    panels = [panel for grid in grids for panel in grid.metadata.panel_bank_section_config.panels]
    for part in (*model.spec.blocks, *panels):
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
