"""The W&B report: its panels, on the metrics that `stasc.tracking.metrics` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import wandb_workspaces.reports.v2 as wr

from stasc.dashboard.varying import config_key

Panel = wr.LinePlot | wr.BarPlot | wr.ParallelCoordinatesPlot | wr.WeavePanelSummaryTable

OUTCOMES = {"final/correction": "correction accuracy", "final/gain": "gain"}
RESULTS = (
    *(f"final/{name}" for name in ("iteration", "initial", "correction", "gain", "over_M0_initial")),
    *(f"final/{name}" for name in ("over_M0_correction", "vote", "vote_all", "pass_at_k")),
    *(f"total/{name}" for name in ("kept", "steps", "tokens", "seconds")),
    "status",
)
TABLES = ("tables/test", "tables/pairs")
BARS = (
    "A bar is the mean over all runs with that option; its line spans the lowest to the highest run. "
    "Baselines have no design choices (-). "
)
VARIANT = "JobType"
BAND: Literal["minmax"] = "minmax"  # with a few seeds, the range is more honest than a standard error
MOST = 100  # lines or bars; W&B's default is 10
WIDTH = 24  # width of a row in W&B's grid units
IN_A_ROW = 4  # bar plots


@dataclass(frozen=True)
class View:
    """The runs that the report shows, and how.

    Attributes:
        group: the sweep to show; None shows the project.
        choices: settings with bars of their own.
        curves_by: setting that groups the curves; None groups them by variant.
    """

    group: str | None
    choices: Sequence[str]
    curves_by: str | None = None


def report(project: str, entity: str, view: View) -> wr.Report:
    """Returns the report on a project's finished runs, or on one sweep's."""
    runs = f"Finished runs of the sweep {view.group}." if view.group else "All finished runs of this project."
    return wr.Report(
        project=project,
        entity=entity,
        title=f"STaSC {view.group or 'all runs'}",
        description=f"{runs} Made by python -m stasc.dashboard.",
        width="fluid",
        blocks=[
            wr.H2(f"Curves by {view.curves_by or 'variant'}"),
            wr.P("Lines are means over runs; bands span the lowest to the highest run. Iteration 0 is M_0."),
            _grid(view, *_curves(view)),
            wr.H2("Results at the last iteration"),
            wr.P(
                [
                    f"{BARS if view.choices else ''}For intervals and tests, run ",
                    wr.InlineCode("python -m stasc.report"),
                ]
            ),
            _grid(view, *_effects(view.choices), table=True),
            wr.H2("Samples"),
            wr.P("Answers to test questions and training pairs of each run's last iteration."),
            _grid(view, *([wr.WeavePanelSummaryTable(table_name=name)] for name in TABLES), height=12),
        ],
    )


def _curves(view: View) -> list[list[Panel]]:
    by = wr.Config(config_key(view.curves_by)) if view.curves_by else VARIANT

    def curve(title: str, *metrics: str, x: str = "iteration") -> wr.LinePlot:
        return wr.LinePlot(
            title=title,
            x=x,
            y=list(metrics),
            groupby=by,
            groupby_aggfunc="mean",
            groupby_rangefunc=BAND,
            smoothing_type="none",
            max_runs_to_show=MOST,
        )

    return [
        [curve("Initial and correction accuracy", "accuracy/initial", "accuracy/correction")],
        [
            curve("Gain: correction minus initial accuracy", "accuracy/gain"),
            curve("Wrong → right", "corrections/wrong_to_right"),
            curve("Right → wrong", "corrections/right_to_wrong"),
        ],
        [
            curve("Share of pairs kept", "filter/kept_share"),
            curve("Training loss by optimizer step", "train/loss", x="train/global_step"),
        ],
    ]


def _effects(choices: Sequence[str]) -> list[list[Panel]]:
    if not choices:
        return []
    rows = [choices[i : i + IN_A_ROW] for i in range(0, len(choices), IN_A_ROW)]
    bars: list[list[Panel]] = [
        [_bars(f"{choice}: {outcome}", name, choice) for choice in row]
        for name, outcome in OUTCOMES.items()
        for row in rows
    ]
    columns: dict[wr.Config | wr.SummaryMetric, str] = {
        **{wr.Config(config_key(name)): name for name in dict.fromkeys((*choices, "seed"))},
        **{wr.SummaryMetric(name): name.partition("/")[2] for name in ("total/kept", *OUTCOMES)},
    }
    lines = [wr.ParallelCoordinatesPlotColumn(metric, display_name=name) for metric, name in columns.items()]
    return [*bars, [wr.ParallelCoordinatesPlot(title="Choices and accuracy, one line per run", columns=lines)]]


def _bars(title: str, metric: str, choice: str) -> wr.BarPlot:
    return wr.BarPlot(
        title=title,
        metrics=[metric],
        groupby=wr.Config(config_key(choice)),
        groupby_aggfunc="mean",
        groupby_rangefunc=BAND,
        max_runs_to_show=MOST,
        max_bars_to_show=MOST,
    )


def _grid(view: View, *rows: Sequence[Panel], table: bool = False, height: int = 8) -> wr.PanelGrid:
    """Returns rows of panels, each as wide as the report, with the table of runs below if `table` is set."""
    for y, row in enumerate(rows):
        width = WIDTH // len(row)
        for x, panel in enumerate(row):
            panel.layout = wr.Layout(x=x * width, y=y * height, w=width, h=height)
    return wr.PanelGrid(runsets=[_runs(view)], panels=[panel for row in rows for panel in row], hide_run_sets=not table)


def _runs(view: View) -> wr.Runset:
    filters = ["Metric('State') == 'finished'"] + ([f"Metric('Group') == '{view.group}'"] if view.group else [])
    settings = dict.fromkeys(("baseline", *view.choices, "seed"))
    return wr.Runset(
        name=view.group or "all runs",
        filters=" and ".join(filters),
        order=[wr.OrderBy(wr.SummaryMetric("final/correction"))],
        pinned_columns=["run:displayName"],
        visible_columns=[*map(_column, settings), *(f"summary:{name}" for name in RESULTS)],
        lock_columns=True,
    )


def _column(setting: str) -> str:
    """Returns a setting's column: W&B stores {"sampling": {"n_corr": 2}} as sampling.value.n_corr."""
    first, *rest = config_key(setting).split(".")
    return f"config:{'.'.join((first, 'value', *rest))}"
