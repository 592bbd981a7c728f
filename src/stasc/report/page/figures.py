"""The report's charts as Vega-Lite specifications, for the interactive page and as SVG and PNG for papers.

Colours are names that the page's style sheet or a palette for papers defines, so the page can switch its theme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from stasc.report.records import Analysis, Effect, Interval, Sweep
from stasc.report.wording import interval_text, p_text, typeset

Spec = dict[str, Any]
Row = dict[str, Any]

VEGA_LITE = "v" + ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
OUTCOMES = {"correction": "final correction accuracy", "gain": "gain: correction minus initial"}
_BOUNDED = ("value", "low", "high")
ANSWERS = ("correction", "initial")
TRANSITIONS = {  # from the bottom of the bar; the lower two add up to the correction accuracy
    "right_right": "stays right",
    "wrong_right": "wrong → right",
    "right_wrong": "right → wrong",
    "wrong_wrong": "stays wrong",
}
OKABE_ITO = {  # a palette for colour-blind readers
    "first": "#0072B2",
    "second": "#D55E00",
    "stays-right": "#0072B2",
    "improved": "#56B4E9",
    "spoiled": "#D55E00",
    "stays-wrong": "#999999",
}
TRANSITION_COLOURS = ("stays-right", "improved", "spoiled", "stays-wrong")
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Helvetica, Arial, sans-serif"


def specifications(sweep: Sweep, analysis: Analysis) -> dict[str, Spec]:
    """Returns the specifications of the charts that have data, by name."""
    made = {
        "effects": _effects([effect for effect in analysis.effects if effect.family == "primary"]),
        "interactions": _effects([effect for effect in analysis.effects if effect.family == "secondary"]),
        "comparisons": _effects(analysis.comparisons),
        "trajectories": _trajectories(analysis.trajectories),
        "curves": _curves(sweep, analysis),
        "transitions": _transitions(analysis),
    }
    return {name: chart.to_dict() for name, chart in made.items() if chart}


def config(palette: Mapping[str, str] | None = None) -> Spec:
    """Returns the configuration of all charts. Without a palette, colours are variables of the style sheet."""
    colour = palette or {name: f"var(--{name})" for name in OKABE_ITO}
    ink = "#222" if palette else "currentColor"
    faint = {"gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.35, "tickColor": ink}
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**faint, "tickOpacity": 0.35, "labelColor": ink, "titleColor": ink, "labelFontSize": 12}
        | {"titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8, "labelLimit": 260},
        "header": {"labelColor": ink, "labelFontSize": 13, "labelFontWeight": 600}
        | {"labelPadding": 6, "titleColor": ink},
        "legend": {"labelColor": ink, "titleColor": ink, "orient": "top", "labelFontSize": 12, "symbolStrokeWidth": 2.5}
        | {"symbolSize": 130, "labelLimit": 220, "columnPadding": 18},
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "style": {"halo": {"stroke": "#fff" if palette else "var(--paper)", "strokeWidth": 6, "strokeJoin": "round"}},
        **{mark: {"color": colour["first"]} for mark in ("line", "area", "point")},
        "range": {
            "category": [colour["first"], colour["second"]],
            "ordinal": [colour[name] for name in TRANSITION_COLOURS],
        },
    }


def save(specs: Mapping[str, Spec], folder: Path) -> dict[str, str]:
    """Writes each chart as SVG and PNG. Returns: the SVGs."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for name, spec in specs.items():
        sized = {**spec, "spec": {**spec["spec"], "width": 300 if spec.get("columns", 1) <= 2 else 170}}
        drawn[name] = vl_convert.vegalite_to_svg(sized, vl_version=VEGA_LITE, config=config(OKABE_ITO))
        (folder / f"{name}.svg").write_text(drawn[name], encoding="utf-8")
        png = vl_convert.svg_to_png(drawn[name].replace("<svg ", '<svg style="background:white" ', 1), ppi=200)
        (folder / f"{name}.png").write_bytes(png)
    return drawn


def library() -> str:
    """Returns the JavaScript module of vega-embed with its dependencies."""
    return str(vl_convert.javascript_bundle("export {vegaEmbed as default};", vl_version=VEGA_LITE))


def _effects(effects: Iterable[Effect]) -> alt.FacetChart | None:
    """Returns a forest plot: estimates with their intervals, and thin lines for simultaneous intervals."""
    effects = list(effects)
    if not effects:
        return None
    sizes = dict.fromkeys(map(_choice, effects), 0.0)  # effects on correction accuracy, which order the choices
    for one in effects:
        if one.outcome == "correction":
            sizes[_choice(one)] = max(sizes[_choice(one)], abs(one.interval.value))
    names = sorted(sizes, key=lambda name: -sizes[name])
    base = alt.Chart().encode(
        y=alt.Y("choice:N")
        .sort(names)
        .title(None)
        .axis(labelExpr="split(datum.label, '\\n')", ticks=False, domain=False, labelPadding=10, grid=False)
    )
    colour = alt.Color("family:N").legend(None)
    tooltip = [alt.Tooltip("choice:N", title="choice"), alt.Tooltip("text:N", title="effect"), "p:N"]
    x = alt.X("value:Q").title("effect, percentage points").axis(tickCount=6).scale(padding=12, zero=True)
    layers = alt.layer(
        alt.Chart().mark_rule(strokeDash=[4, 3], opacity=0.4).encode(x=alt.datum(0)),
        base.mark_rule(opacity=0.45).encode(x=alt.X("wide_low:Q"), x2="wide_high:Q"),
        base.mark_rule(strokeWidth=5, opacity=0.9).encode(x=alt.X("low:Q"), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=130, opacity=1).encode(x=x, color=colour, tooltip=tooltip),
        base.mark_text(dy=-15, style="halo").encode(x="value:Q", text="text:N"),
        base.mark_text(dy=-15).encode(x="value:Q", text="text:N"),
        data=alt.Data(values=[_effect_row(one) for one in effects]),
    )
    faceted = layers.properties(width=300, height=alt.Step(54)).facet(
        facet=alt.Facet("outcome:N").title(None).sort(list(OUTCOMES.values())), columns=2
    )
    return faceted.properties(description=_forest_text(effects))


def _effect_row(effect: Effect) -> Row:
    wide = _bounds(effect.simultaneous)
    return {
        "choice": _choice(effect),
        "family": effect.family,
        "outcome": OUTCOMES[effect.outcome],
        **_bounds(effect.interval),
        "wide_low": wide["low"],
        "wide_high": wide["high"],
        "text": typeset(interval_text(effect.interval, signed=True)),
        "p": p_text(effect.p_adjusted),
    }


def _choice(effect: Effect) -> str:
    if len(effect.factors) != 1:
        return effect.label
    return f"{effect.factors[0]}\n{effect.label.removeprefix(f'{effect.factors[0]} ')}"


def _bounds(interval: Interval) -> Row:
    value, low, high = interval.value, interval.low, interval.high
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def _curves(sweep: Sweep, analysis: Analysis) -> alt.FacetChart | None:
    """Returns accuracies by iteration: means over seeds with intervals, and thin lines for single seeds."""
    curves = _with_iterations(analysis)
    rows = [
        {"cell": name, "n": cell.n, "answer": answer, **_bounds(interval)}
        for name, cells in curves.items()
        for cell in cells
        for answer, interval in (("correction", cell.correction), ("initial", cell.initial))
    ]
    if not rows:
        return None
    rows += [
        {"cell": run.cell, "n": entry["n"], "answer": answer, "seed": run.seed, "seeded": 100 * entry["test"][key]}
        for run in (*sweep.runs, *sweep.baselines)
        if run.cell in curves and run.complete
        for entry in run.iterations
        if entry["n"] <= analysis.n
        for answer, key in (("correction", "corr_acc"), ("initial", "init_acc"))
    ]
    lines = alt.Legend(title=None, symbolType="stroke", symbolOpacity=1, symbolSize=400)
    colour = alt.Color("answer:N", legend=lines).scale(domain=list(ANSWERS))
    dash = alt.StrokeDash("answer:N", legend=lines).scale(domain=list(ANSWERS), range=[[1, 0], [5, 4]])
    x = _iterations({cell.n for cells in curves.values() for cell in cells})
    y = alt.Y("value:Q").title("accuracy, %").scale(zero=False)
    mean, seed = (alt.Chart().transform_filter(f"isValid(datum.{name})") for name in ("value", "seeded"))
    tips = ["cell:N", alt.Tooltip("n:Q", title="iteration"), "answer:N"]
    tips += [alt.Tooltip(f"{name}:Q", format=".1f") for name in _BOUNDED]
    layers = alt.layer(
        mean.mark_area(opacity=0.16).encode(x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        seed.mark_line(strokeWidth=0.8, opacity=0.45).encode(
            x, alt.Y("seeded:Q"), colour, detail=["seed:N", "answer:N"]
        ),
        mean.mark_line(strokeWidth=2.4).encode(x, y, colour, dash),
        mean.mark_point(filled=True, size=36, opacity=1).encode(x, y, colour, tooltip=tips),
        data=alt.Data(values=rows),
    )
    return _by_cell(layers, list(curves), _curves_text(analysis), height=150)


def _trajectories(effects: Sequence[Effect]) -> alt.FacetChart | None:
    """Returns each choice's effect by iteration."""
    if len({effect.n for effect in effects}) < 2:
        return None
    rows = [
        {"cell": _choice(one).replace("\n", ": "), "n": one.n, "p": p_text(one.p_adjusted), **_bounds(one.interval)}
        for one in effects
    ]
    base = alt.Chart().encode(_iterations({effect.n for effect in effects}))
    y = alt.Y("value:Q").title("effect, pp")
    tips = [alt.Tooltip("n:Q", title="iteration"), *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in _BOUNDED)]
    tips.append(alt.Tooltip("p:N", title="p, adjusted over all iterations"))
    layers = alt.layer(
        alt.Chart().mark_rule(strokeDash=[4, 3], opacity=0.4).encode(y=alt.datum(0)),
        base.mark_area(opacity=0.16).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2.4).encode(y=y),
        base.mark_point(filled=True, size=36, opacity=1).encode(y=y, tooltip=tips),
        data=alt.Data(values=rows),
    )
    return _by_cell(layers, list(dict.fromkeys(row["cell"] for row in rows)), _forest_text(effects), height=130)


def _transitions(analysis: Analysis) -> alt.FacetChart | None:
    """Returns the shares of the four transitions by iteration."""
    rows = [
        {"cell": name, "n": cell.n, "transition": label, "order": order, "share": cell.transitions[key]}
        for name, cells in analysis.curves.items()
        for cell in cells
        for order, (key, label) in enumerate(TRANSITIONS.items())
    ]
    if not rows:
        return None
    labels, share = list(TRANSITIONS.values()), alt.Tooltip("share:Q", format=".1f")
    tips = ["cell:N", alt.Tooltip("n:O", title="iteration"), "transition:N", share]
    bars = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            alt.X("n:O").title("iteration").axis(labelAngle=0),
            alt.Y("share:Q").title("share of test answers, %").scale(domain=[0, 100]).stack("zero"),
            alt.Color("transition:O").title(None).scale(domain=labels).sort(labels),
            order="order:Q",
            tooltip=tips,
        )
    )
    text = "Stacked bars: for each variant and iteration, the shares of test answers that " + ", ".join(labels)
    return _by_cell(bars, list(analysis.curves), f"{text}. The tables of the variants hold the numbers.", height=130)


def _iterations(ns: set[int]) -> alt.X:
    """Returns the axis of iterations, with at most six ticks."""
    step = -(-len(ns) // 6)
    return alt.X("n:Q").title("iteration").axis(values=sorted(ns)[::step], format="d", grid=False)


def _with_iterations(analysis: Analysis) -> Mapping[str, Sequence[Any]]:
    """Returns the curves with more than one point."""
    return {name: cells for name, cells in analysis.curves.items() if len(cells) > 1}


def _by_cell(chart: Any, names: Sequence[str], text: str, height: int) -> alt.FacetChart:
    facet = alt.Facet("cell:N").title(None).sort(names)
    sized = chart.properties(width=170, height=height)
    faceted: alt.FacetChart = sized.facet(facet=facet, columns=min(4, len(names)))
    return faceted.properties(description=text)


def _forest_text(effects: Sequence[Effect]) -> str:
    return "Forest plot of effects in percentage points with 95 % intervals. " + " ".join(
        f"{', '.join(effect.factors)}: {effect.label}, {OUTCOMES[effect.outcome]} "
        f"at iteration {effect.n} {typeset(interval_text(effect.interval, signed=True))}."
        for effect in effects
    )


def _curves_text(analysis: Analysis) -> str:
    return "Learning curves: correction accuracy solid, initial accuracy dashed, with bands. " + " ".join(
        f"{name}: correction from {cells[0].correction.value:.1f} to {cells[-1].correction.value:.1f} %, "
        f"initial from {cells[0].initial.value:.1f} to {cells[-1].initial.value:.1f} %."
        for name, cells in _with_iterations(analysis).items()
    )
