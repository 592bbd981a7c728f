"""The W&B report: its plots, on the metrics that `stasc.tracking.wandb` logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import wandb_workspaces.reports.v2 as wr

Panel = wr.LinePlot | wr.BarPlot | wr.ParallelCoordinatesPlot | wr.WeavePanelSummaryTable

CHOICES = ("init", "filter", "start", "finetune")
OUTCOMES = {"final/corr_acc": "correction accuracy", "final/gain": "gain, correction minus initial accuracy"}
TRANSITIONS = tuple(f"test/{name}" for name in ("right_right", "right_wrong", "wrong_right", "wrong_wrong"))
RESULTS = ("n", "init_acc", "corr_acc", "gain", "over_initial", "over_correction", "vote_acc", "pass_acc")
VARIANT = "JobType"
BAND: Literal["minmax"] = "minmax"  # with a few seeds, the range is more honest than a standard error
MOST = 100  # lines or bars; W&B's default is 10
WIDTH = 24  # width of a row in W&B's grid units


def report(project: str, entity: str, group: str | None) -> wr.Report:
    """Returns the dashboard of a project's runs, or of one sweep's."""
    scope = f"The runs of the sweep {group}." if group else "All runs of this project; --group NAME shows one sweep."
    return wr.Report(
        project=project,
        entity=entity,
        title=f"STaSC {group or 'all runs'}",
        description=f"{scope} Made by python -m stasc.dashboard.",
        width="fluid",
        blocks=[
            wr.H2("Accuracy on held-out questions, by variant"),
            wr.P("Lines are means over seeds; bands span the lowest to the highest seed. Iteration 0 is M_0."),
            _grid(
                group,
                [
                    _curve("Initial accuracy", "test/init_acc", (0, 1)),
                    _curve("Correction accuracy", "test/corr_acc", (0, 1)),
                ],
            ),
            wr.H2("Accuracy by choice, at the last iteration"),
            wr.P(
                [
                    "A bar is the mean over all variants and seeds with that option; its line spans the lowest to the "
                    "highest run. Baselines have no option (-). For intervals and tests, run ",
                    wr.InlineCode("python -m stasc.report"),
                ]
            ),
            _grid(group, *_effects(), table=True),
            wr.H2("Transitions from initial answers to corrections"),
            _grid(
                group,
                [
                    _curve("Wrong → right", "test/wrong_right"),
                    _curve("Right → wrong", "test/right_wrong"),
                    _bars("All transitions, at the last iteration", TRANSITIONS, VARIANT),
                ],
            ),
            wr.H2("Training"),
            _grid(
                group,
                [
                    _curve("Pairs kept", "train/kept"),
                    _curve("Optimizer steps", "finetune/steps"),
                    _curve("Loss", "finetune/loss"),
                    _curve("Seconds", "seconds/total"),
                ],
            ),
            wr.H2("Samples"),
            wr.P("Training pairs of each run's last iteration, kept pairs first."),
            _grid(group, [wr.WeavePanelSummaryTable(table_name="pairs")], height=16),
        ],
    )


def _effects() -> list[list[Panel]]:
    bars: list[list[Panel]] = [
        [_bars(f"{choice}: {outcome}", [name], wr.Config(f"choice/{choice}")) for choice in CHOICES]
        for name, outcome in OUTCOMES.items()
    ]
    columns: dict[wr.Config | wr.SummaryMetric, str] = {
        **{wr.Config(f"choice/{choice}"): choice for choice in CHOICES},
        wr.Config("seed"): "seed",
        **{wr.SummaryMetric(name): name.partition("/")[2] for name in ("total/kept", *OUTCOMES)},
    }
    lines = [wr.ParallelCoordinatesPlotColumn(metric, display_name=name) for metric, name in columns.items()]
    return [*bars, [wr.ParallelCoordinatesPlot(title="Choices and accuracy, one line per run", columns=lines)]]


def _curve(title: str, metric: str, limits: tuple[float | None, float | None] = (None, None)) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x="iteration",
        y=[metric],
        range_y=limits,
        groupby=VARIANT,
        groupby_aggfunc="mean",
        groupby_rangefunc=BAND,
        smoothing_type="none",
        max_runs_to_show=MOST,
    )


def _bars(title: str, metrics: Sequence[str], by: str | wr.Config) -> wr.BarPlot:
    return wr.BarPlot(
        title=title,
        metrics=list(metrics),
        groupby=by,
        groupby_aggfunc="mean",
        groupby_rangefunc=BAND,
        max_runs_to_show=MOST,
        max_bars_to_show=MOST,
    )


def _grid(group: str | None, *rows: Sequence[Panel], table: bool = False, height: int = 8) -> wr.PanelGrid:
    """Returns rows of plots, each as wide as the report, with the table of runs below if `table` is set."""
    for y, row in enumerate(rows):
        width = WIDTH // len(row)
        for x, panel in enumerate(row):
            panel.layout = wr.Layout(x=x * width, y=y * height, w=width, h=height)
    return wr.PanelGrid(
        runsets=[_runs(group)], panels=[panel for row in rows for panel in row], hide_run_sets=not table
    )


def _runs(group: str | None) -> wr.Runset:
    settings = [*(f"choice/{name}" for name in ("baseline", *CHOICES)), "seed"]
    return wr.Runset(
        name=group or "all runs",
        filters=f"Metric('Group') == '{group}'" if group else "",
        order=[wr.OrderBy(wr.SummaryMetric("final/corr_acc"))],
        pinned_columns=["run:displayName"],
        visible_columns=[
            *(f"config:{name}.value" for name in settings),
            *(f"summary:final/{name}" for name in RESULTS),
            *(f"summary:{name}" for name in ("total/kept", "total/steps", "total/seconds", "status")),
        ],
        lock_columns=True,
    )
