"""The report as one HTML file: it needs no network, and nothing that a model answered can act in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stasc import fsx
from stasc.report import figures, samples, wording, words
from stasc.report.records import Analysis, Effect, Sweep
from stasc.units import counted, duration_text

FIGURES = "figures"
PAGE = "report.html"


def write(sweep: Sweep, analysis: Analysis, folder: Path) -> None:
    """Writes report.html into `folder`, and its charts as SVG and PNG into figures/."""
    specs = figures.specifications(sweep, analysis)
    drawn = figures.save(specs, folder / FIGURES)
    packed = samples.pack(sweep, analysis.n)
    script = _text("page.js")
    data = {
        "charts": specs,
        "config": figures.config(),
        "samples": packed.index,
        "correct_at": correct_at(sweep),
    }
    html = (
        _environment()
        .get_template("page.html")
        .render(
            sweep=sweep,
            analysis=analysis,
            told=tell(sweep, analysis),
            style=Markup(_text("style.css")),
            tables_style=Markup(_tables("dt_bundle.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            libraries={"vega": packed_text(figures.library()), "datatables": packed_text(_tables("dt_bundle.js"))},
            data=Markup(as_json(data)),
            blocks={"-".join(map(str, name)): block for name, block in packed.blocks.items()},
            left_out=packed.left_out,
            drawn={name: base64.b64encode(svg.encode()).decode() for name, svg in drawn.items()},
            charts={name: spec["description"] for name, spec in specs.items()},
            methods=sorted({one.method for cell in analysis.cells for one in (cell.correction, cell.gain)}),
            transitions=figures.TRANSITIONS,
            outcomes=figures.OUTCOMES,
        )
    )
    fsx.write(folder / PAGE, html.encode())


@dataclass(frozen=True)
class Told:
    """What the page says beside the numbers. `main` are the choices' effects by factor, the greatest first."""

    varied: list[tuple[str, list[str]]]
    setting: str
    main: list[list[Effect]]
    others: list[Effect]
    seeds: int
    combinations: str
    incomplete: list[str]
    notes: list[str]


def tell(sweep: Sweep, analysis: Analysis) -> Told:
    """What the first screen and the notes are made of."""
    primary = [effect for effect in analysis.effects if effect.family == "primary"]
    by_factor: dict[tuple[str, ...], list[Effect]] = {}
    for effect in primary:
        by_factor.setdefault(effect.factors, []).append(effect)
    return Told(
        varied=[(name, list(levels)) for name, levels in sweep.settings.items()],
        setting=_setting(sweep, analysis),
        main=sorted(by_factor.values(), key=lambda effects: -abs(effects[0].interval.value)),
        others=[effect for effect in analysis.effects if effect.family != "primary"],
        seeds=len({run.seed for run in sweep.runs}),
        combinations=_combinations(sweep),
        incomplete=[f"{run.name}: {run.status}" for run in (*sweep.runs, *sweep.baselines) if not run.complete],
        notes=list(dict.fromkeys([*sweep.notes, *analysis.notes])),
    )


def _combinations(sweep: Sweep) -> str:
    """How many combinations of the settings' levels the sweep has."""
    every = math.prod(map(len, sweep.settings.values()))
    if len(sweep.settings) < 2:
        return "each"
    return (
        "in every combination, each"
        if len(sweep.cells) == every
        else f"in {len(sweep.cells)} of {every} combinations, each"
    )


def _setting(sweep: Sweep, analysis: Analysis) -> str:
    """Which model was taught on what, and what it was asked."""
    settings = next((run.settings for run in sweep.runs if run.settings), {})
    model = str((settings.get("model") or {}).get("path") or "").partition("#")[0].rstrip("/").rpartition("/")[2]
    dataset = str((settings.get("dataset") or {}).get("_target_") or "").rpartition(".")[2].lower()
    questions = max((cell.questions for cell in analysis.cells), default=0)
    split = (settings.get("evaluation") or {}).get("split") or "test"
    return (
        f"{model.removesuffix('.gguf') or 'A model'} was taught for {counted(analysis.n, 'iteration')} to correct its "
        f"own answers{f' to the {dataset} questions' if dataset else ''}. It then answered "
        f"{counted(questions, f'{split} question')} and corrected each answer."
    )


def correct_at(sweep: Sweep) -> float:
    """The reward from which an answer is right."""
    return next((float(run.settings["correct_at"]) for run in sweep.runs if "correct_at" in run.settings), 1.0)


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    return json.dumps(value, separators=(",", ":"), default=str, allow_nan=False).replace("<", "\\u003c")


def packed_text(text: str) -> str:
    """Gzip in base64, as the page's script unpacks it."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stasc.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "interval": words.interval_text,
        "p": wording.p_text,
        "duration": duration_text,
        "counted": counted,
        "prose": words.prose,
    }
    return environment


def _text(name: str) -> str:
    return (files("stasc.report") / "template" / name).read_text(encoding="utf-8")


def _tables(name: str) -> str:
    """A file of the DataTables bundle that itables brings."""
    return (files("itables") / "html" / name).read_text(encoding="utf-8")
