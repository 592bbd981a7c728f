"""Renders the report as one HTML file, which needs no network and never runs text that a model produced."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stasc.machine import durable
from stasc.report import wording
from stasc.report.page import figures, samples
from stasc.report.records import Analysis, Change, Effect, Sweep
from stasc.units import counted, duration_text

FIGURES = "figures"
PAGE = "report.html"
_TEMPLATE = ("stasc.report.page", "template")
_TABLES = ("itables", "html")  # the DataTables bundle
NAMED = 4  # incomplete runs on the first screen; if there are more, it shows their number


def write(sweep: Sweep, analysis: Analysis, folder: Path) -> None:
    """Writes report.html into `folder`, and its charts as SVG and PNG into figures/."""
    specs = figures.specifications(sweep, analysis)
    drawn = figures.save(specs, folder / FIGURES)
    packed = samples.pack(sweep, analysis.n)
    script = _text(*_TEMPLATE, "page.js")
    libraries = {"vega": figures.library(), "datatables": _text(*_TABLES, "dt_bundle.js")}
    data = {"charts": specs, "config": figures.config(), "samples": packed.index, "correct_at": correct_at(sweep)}
    loader = PackageLoader(*_TEMPLATE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _typeset(wording.number), "bounds": _typeset(wording.bounds), "p": wording.p_text}
    environment.filters |= {"duration": duration_text, "counted": counted, "prose": prose}
    html = environment.get_template("page.html").render(
        sweep=sweep,
        analysis=analysis,
        summary=summarise(sweep, analysis),
        style=Markup(_text(*_TEMPLATE, "style.css")),
        tables_style=Markup(_text(*_TABLES, "dt_bundle.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        libraries={name: samples.zipped(text) for name, text in libraries.items()},
        data=Markup(as_json(data)),
        blocks={"-".join(map(str, name)): block for name, block in packed.blocks.items()},
        left_out=packed.left_out,
        drawn={name: base64.b64encode(svg.encode()).decode() for name, svg in drawn.items()},
        charts={name: spec["description"] for name, spec in specs.items()},
        methods=sorted({one.method for cell in analysis.cells for one in (cell.correction, cell.gain)}),
        transitions=figures.TRANSITIONS,
        outcomes=figures.OUTCOMES,
    )
    durable.write(folder / PAGE, html.encode())


@dataclass(frozen=True)
class Summary:
    """The texts and tables of the first screen and the notes.

    `headline` alternates claims and figures. `main` are the main effects, the largest first. `replicated` says whether
    a variant has several seeds.
    """

    headline: list[tuple[str, bool]]
    setting: str
    main: list[list[Effect]]
    replicated: bool
    combinations: str
    changes: list[tuple[str, int, Change]]
    incomplete: list[str]
    incomplete_count: int
    notes: list[str]


def summarise(sweep: Sweep, analysis: Analysis) -> Summary:
    """Collects the texts of the first screen and the notes."""
    primary = [effect for effect in analysis.effects if effect.family == "primary"]
    by_factor = {one.factors: [effect for effect in primary if effect.factors == one.factors] for one in primary}
    return Summary(
        headline=parted(analysis.headline, analysis.effects),
        setting=_setting(sweep, analysis),
        main=sorted(by_factor.values(), key=lambda effects: -abs(effects[0].interval.value)),
        replicated=any(len(cell.seeds) > 1 for cell in analysis.cells),
        combinations=_combinations(sweep),
        changes=[
            (cell.name, seed, change) for cell in analysis.cells if cell.n for seed, change in cell.changes.items()
        ],
        incomplete=_incomplete(sweep),
        incomplete_count=sum(not run.complete for run in (*sweep.runs, *sweep.baselines)),
        notes=list(dict.fromkeys([*sweep.notes, *analysis.notes])),
    )


def parted(headline: str, effects: Iterable[Effect]) -> list[tuple[str, bool]]:
    """Splits the headline into claims and the effects that support them. Returns: each part, and whether it is such."""
    sentences = sorted({effect.sentence for effect in effects if effect.sentence}, key=len, reverse=True)
    if not sentences:
        return [(headline, False)]
    parts = re.split(rf"({'|'.join(map(re.escape, sentences))})", headline)
    split = [(f"{part}." if part in sentences else part.removeprefix(".").strip(), part in sentences) for part in parts]
    return [part for part in split if part[0]]


def _incomplete(sweep: Sweep) -> list[str]:
    """Lists incomplete runs by status: by name, or by number if there are many."""
    runs = [run for run in (*sweep.runs, *sweep.baselines) if not run.complete]
    by_status = {one.status: [run.name for run in runs if run.status == one.status] for one in runs}
    texts = {
        status: wording.listed(names) if len(names) <= NAMED else len(names) for status, names in by_status.items()
    }
    return [*(f"{status}: {text}" for status, text in texts.items()), *sweep.absent]


def _combinations(sweep: Sweep) -> str:
    """Describes how many combinations of levels the sweep has, or should have if runs are incomplete."""
    every, seeds = math.prod(map(len, sweep.settings.values())), len({run.seed for run in sweep.runs})
    text = f"with {counted(seeds, 'seed')} each"
    if len(sweep.settings) > 1:
        whole = len(sweep.cells) == every
        text = f"in {'every combination' if whole else f'{len(sweep.cells)} of {every} combinations'}, {text}"
    return f"planned {text}; some of these runs are incomplete" if _incomplete(sweep) else text


def _setting(sweep: Sweep, analysis: Analysis) -> str:
    """Describes the model, its training and the questions it answered."""
    known = _settings(sweep)
    settings = known[0] if known else {}
    models = {str((one.get("model") or {}).get("path") or "").partition("#")[0] for one in known}
    path = models.pop() if len(models) == 1 else ""
    model = "The toy model tiny" if path.startswith("tiny:") else path.rstrip("/").rpartition("/")[2]
    dataset = str((settings.get("dataset") or {}).get("_target_") or "").rpartition(".")[2].lower()
    questions = max((cell.questions for cell in analysis.cells), default=0)
    split = (settings.get("evaluation") or {}).get("split") or "test"
    name = model.removesuffix(".gguf") or ("Each of several models" if models else "A model")
    asked = f"{counted(questions, f'{split} question')} and corrected each answer."
    if not analysis.n:
        return f"{name}, without training, answered {asked}"
    return (
        f"{name} was trained for {counted(analysis.n, 'iteration')} to correct its own answers"
        f"{f' to the {dataset} questions' if dataset else ''}. It then answered {asked}"
    )


def _settings(sweep: Sweep) -> list[Mapping[str, Any]]:
    """Returns the settings of all runs, variants first."""
    return [run.settings for runs in (sweep.runs, sweep.baselines) for run in runs if run.settings]


def correct_at(sweep: Sweep) -> float:
    """Returns the reward from which an answer is right."""
    return next((float(one["correct_at"]) for one in _settings(sweep) if "correct_at" in one), 1.0)


def as_json(value: Any) -> str:
    """Returns JSON that is safe inside a script element: it cannot end the element."""
    return json.dumps(value, separators=(",", ":"), default=str, allow_nan=False).replace("<", "\\u003c")


def prose(text: str) -> Markup:
    """Returns a sentence as markup, with M_0 as the paper prints it."""
    return Markup(re.sub(r"\bM_(\w)\b", r"M<sub>\1</sub>", wording.typeset(str(escape(text)))))


def _typeset(form: Callable[..., str]) -> Callable[..., str]:
    return lambda *values, **settings: wording.typeset(form(*values, **settings))


def _text(package: str, *path: str) -> str:
    return files(package).joinpath(*path).read_text(encoding="utf-8")
