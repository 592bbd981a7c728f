"""The report as one HTML file: it needs no network, and nothing that a model answered can act in it."""

from __future__ import annotations

import base64
import gzip
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
from stasc.report import figures, samples, words
from stasc.report.records import Analysis, Change, Effect, Sweep
from stasc.units import counted, duration_text

FIGURES = "figures"
PAGE = "report.html"
NAMED = 4  # runs that are not complete: of more, their number stands on the first screen


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
    durable.write(folder / PAGE, html.encode())


@dataclass(frozen=True)
class Told:
    """What the page says beside the numbers.

    `headline` is in parts, of claims and figures. `main` are the effects of choices, the greatest first. `replicated`
    says whether a variant has run with several seeds.
    """

    headline: list[tuple[str, bool]]
    varied: list[tuple[str, list[str]]]
    setting: str
    main: list[list[Effect]]
    others: list[Effect]
    replicated: bool
    combinations: str
    changes: list[tuple[str, int, Change]]
    incomplete: list[str]
    incomplete_count: int
    notes: list[str]


def tell(sweep: Sweep, analysis: Analysis) -> Told:
    """What the first screen and the notes are made of."""
    primary = [effect for effect in analysis.effects if effect.family == "primary"]
    by_factor: dict[tuple[str, ...], list[Effect]] = {}
    for effect in primary:
        by_factor.setdefault(effect.factors, []).append(effect)
    return Told(
        headline=parted(analysis.headline, analysis.effects),
        varied=[(name, list(levels)) for name, levels in sweep.settings.items()],
        setting=_setting(sweep, analysis),
        main=sorted(by_factor.values(), key=lambda effects: -abs(effects[0].interval.value)),
        others=[effect for effect in analysis.effects if effect.family != "primary"],
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
    """The headline's parts in turn, and whether each is what a claim rests on: an effect with all that goes with it."""
    sentences = sorted({effect.sentence for effect in effects if effect.sentence}, key=len, reverse=True)
    if not sentences:
        return [(headline, False)]
    parts = re.split(rf"({'|'.join(map(re.escape, sentences))})", headline)
    told = [(f"{part}." if part in sentences else part.removeprefix(".").strip(), part in sentences) for part in parts]
    return [part for part in told if part[0]]


def _incomplete(sweep: Sweep) -> list[str]:
    """Runs that are not complete, by what became of them: by name, or if many are alike, by their number."""
    by_status: dict[str, list[str]] = {}
    for run in (*sweep.runs, *sweep.baselines):
        if not run.complete:
            by_status.setdefault(run.status, []).append(run.name)
    told = [
        f"{status}: {words.listed(names) if len(names) <= NAMED else len(names)}" for status, names in by_status.items()
    ]
    return [*told, *sweep.absent]


def _combinations(sweep: Sweep) -> str:
    """How many combinations of the settings' levels the sweep has, or where runs are not complete, should have."""
    every, seeds = math.prod(map(len, sweep.settings.values())), len({run.seed for run in sweep.runs})
    told = f"each with {counted(seeds, 'seed')}"
    if len(sweep.settings) > 1:
        whole = len(sweep.cells) == every
        told = f"in {'every combination' if whole else f'{len(sweep.cells)} of {every} combinations'}, {told}"
    return f"to be run {told}; not all of these runs are complete" if _incomplete(sweep) else told


def _setting(sweep: Sweep, analysis: Analysis) -> str:
    """Which model was taught on what, and what it was asked."""
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
        f"{name} was taught for {counted(analysis.n, 'iteration')} to correct its own answers"
        f"{f' to the {dataset} questions' if dataset else ''}. It then answered {asked}"
    )


def _settings(sweep: Sweep) -> list[Mapping[str, Any]]:
    """The variants' first, then the baselines', which may be all there is."""
    return [run.settings for runs in (sweep.runs, sweep.baselines) for run in runs if run.settings]


def correct_at(sweep: Sweep) -> float:
    """The reward from which an answer is right."""
    return next((float(one["correct_at"]) for one in _settings(sweep) if "correct_at" in one), 1.0)


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
        "number": _typeset(words.number),
        "bounds": _typeset(words.bounds),
        "p": words.p_text,
        "duration": duration_text,
        "counted": counted,
        "prose": prose,
    }
    return environment


def prose(text: str) -> Markup:
    """A sentence for the page, with M_0 as the paper prints it."""
    return Markup(re.sub(r"\bM_(\w)\b", r"M<sub>\1</sub>", words.typeset(str(escape(text)))))


def _typeset(form: Callable[..., str]) -> Callable[..., str]:
    return lambda *values, **settings: words.typeset(form(*values, **settings))


def _text(name: str) -> str:
    return (files("stasc.report") / "template" / name).read_text(encoding="utf-8")


def _tables(name: str) -> str:
    """A file of the DataTables bundle that itables brings."""
    return (files("itables") / "html" / name).read_text(encoding="utf-8")
