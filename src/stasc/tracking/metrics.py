"""The names of metrics, tables and settings in Weights & Biases, and what each shows. Pure functions, no W&B.

Metrics of an iteration are plotted over `iteration`, those of an optimizer step over `train/global_step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stasc.records import OptimizerStep
from stasc.tracking.journal import COMPLETE
from stasc.tracking.tracker import RunInfo

T = TypeVar("T")
Row = dict[str, Any]

CHOICE = "choice/"  # prefix of a config group's option, as the group's own name holds its settings
DESIGN = ("init", "filter", "start", "target", "finetune")  # groups of design choices, which baselines have none of
SECTIONS = ("store", "tracking", "sweep")  # of the settings, which say nothing about a result
INTERNAL = ("cache_dir", "letter", "suffix")  # settings of options that say nothing either

ACCURACIES = {"initial": "init_acc", "correction": "corr_acc"}
VOTES = {"vote": "vote_acc", "vote_all": "vote_all_acc", "pass_at_k": "pass_acc"}
TRANSITIONS = {f"{a}_{b}": f"{a}_to_{b}" for a in ("right", "wrong") for b in ("right", "wrong")}
TEST = {  # figures of the test pairs in summary.json, by their names there; the rest describe answers/
    **{old: f"accuracy/{new}" for new, old in (ACCURACIES | VOTES).items()},
    **{old: f"corrections/{new}" for old, new in TRANSITIONS.items()},
    **{"init_reward": "rewards/initial", "corr_reward": "rewards/correction"},
}
TRAIN = {  # figures of the training pairs; the rest describe samples/
    **{old: f"samples/{new}_accuracy" for new, old in ACCURACIES.items()},
    **{old: f"samples/{new}" for old, new in TRANSITIONS.items()},
    **{name: f"filter/{name}" for name in ("pairs", "kept")},
}
TIMES = {"total": "time/elapsed"}  # wall-clock time of this start, which depends on cache hits

ALWAYS = (  # the charts of any run
    *("accuracy/", "corrections/", "filter/kept", "filter/kept_share", "samples/initial_accuracy"),
    *("samples/correction_accuracy", "answers/initial_tokens", "answers/correction_tokens"),
    *("time/initial", "time/correction", "time/filter", "time/finetune", "time/evaluation", "time/total"),
    *("train/loss", "train/grad_norm", "train/tokens_per_second", "train/num_input_tokens_seen", "train/epoch"),
)
IF_VARYING = (  # charts of runs in which they are not constant
    *(f"answers/{which}_{what}" for which in ("initial", "correction") for what in ("truncated", "empty", "unmarked")),
    *("answers/correction_not_asked", "time/reused_stages", "train/learning_rate"),
)
IF_GRADED = {
    f"rewards/{name}": f"accuracy/{name}" for name in ACCURACIES
}  # charts of runs whose rewards are not 0 or 1

TEST_COLUMNS = (
    *("iteration", "question", "reference", "initial", "correction", "initial_reward", "correction_reward"),
    "transition",
)
PAIR_COLUMNS = (*TEST_COLUMNS, "kept", "why")


def settings(info: RunInfo) -> dict[str, Any]:
    """Returns the config of a W&B run: what decides its results.

    Options of config groups are `choice/init` and so on, without dots, so that W&B can group and filter by them. A
    baseline gets no design choices, so that it is not grouped with the variants that share one.
    """
    baseline = str(info.config.get("baseline") or "none")
    chosen = {name: option for name, option in info.choices.items() if baseline == "none" or name not in DESIGN}
    return {
        **{name: _without_internal(part) for name, part in info.config.items() if name not in SECTIONS},
        **{"variant": info.variant, "seed": info.seed},
        **{"commit": info.commit, "device": info.device, "versions": dict(info.versions)},
        **{f"{CHOICE}{name}": option for name, option in {"baseline": baseline, **chosen}.items()},
    }


def _without_internal(part: Any) -> Any:
    """Returns a section of the settings, or a single one, without what is internal."""
    if not isinstance(part, Mapping):
        return part
    return {
        name: _without_internal(value)
        for name, value in part.items()
        if name not in INTERNAL and not name.startswith("_")
    }


@dataclass
class StepCounter:
    """Counts over iterations, for rows of W&B that repeat exactly when a run is resumed."""

    steps: int = 0
    input_tokens: int = 0
    epochs: float = 0.0  # of completed iterations
    epoch: float = 0.0  # of the current iteration

    def row(self, n: int, step: OptimizerStep) -> tuple[int, Row]:
        """Returns the row of the next optimizer step, in iteration n, and its number in W&B."""
        self.steps, self.input_tokens, self.epoch = self.steps + 1, self.input_tokens + step.input_tokens, step.epoch
        finite = {"loss": step.loss, "grad_norm": step.grad_norm}
        return self.steps + 2 * n - 1, {
            "train/global_step": self.steps,
            **{f"train/{name}": value for name, value in finite.items() if value is not None},
            "train/learning_rate": step.learning_rate,
            "train/tokens_per_second": step.input_tokens / step.seconds if step.seconds else 0.0,
            "train/num_input_tokens_seen": self.input_tokens,
            "train/epoch": self.epochs + step.epoch,
        }

    def iteration(self, n: int) -> int:
        """Returns the number in W&B of the row of iteration n, which its tables follow."""
        self.epochs, self.epoch = self.epochs + self.epoch, 0.0
        return self.steps + 2 * n


def iteration_row(entry: Mapping[str, Any], m_0: Mapping[str, Any]) -> Row:
    """Returns the metrics of an iteration from its entry in summary.json; `m_0` is the entry of iteration 0."""
    train = entry["train"] or {}
    share = {"filter/kept_share": train["kept"] / train["pairs"]} if train else {}
    return {
        "iteration": entry["n"],
        **_named(entry["test"], TEST, "answers/"),
        **{f"accuracy/{name}": value for name, value in _gains(entry, m_0).items()},
        **_named(train, TRAIN, "samples/"),
        **share,
        **_named(entry["finetune"] or {}, {}, "finetune/"),
        **_named(entry["seconds"], TIMES, "time/"),
        **{"time/total": _computing_s(entry), "time/reused_stages": entry.get("reused", 0)},
    }


def _named(figures: Mapping[str, Any], names: Mapping[str, str], section: str) -> Row:
    return {
        names.get(name) or _in_full(name, section): value
        for name, value in figures.items()
        if isinstance(value, int | float)
    }


def _in_full(name: str, section: str) -> str:
    """Returns a figure's name in W&B, in which nothing is abbreviated."""
    for short, long in (("init_", "initial_"), ("corr_", "correction_")):
        if name.startswith(short):
            return section + long + name.removeprefix(short)
    return f"filter/{name}" if name.startswith("left_out_") else section + name


def _gains(entry: Mapping[str, Any], m_0: Mapping[str, Any]) -> Row:
    """Returns the correction accuracy less the initial accuracy, and less the accuracies of M_0."""
    now, then = entry["test"], m_0["test"]
    return {
        "gain": now["corr_acc"] - now["init_acc"],
        "over_M0_initial": now["corr_acc"] - then["init_acc"],
        "over_M0_correction": now["corr_acc"] - then["corr_acc"],
    }


def _computing_s(entry: Mapping[str, Any]) -> float:
    """Returns the seconds that the stages of an iteration took when they were computed, by this run or another."""
    return float(sum(s for name, s in entry["seconds"].items() if name not in ("total", "loading")))


def summary(status: str, error: str | None, entries: Sequence[Mapping[str, Any]]) -> Row:
    """Returns how a run ended: its status, totals, and results, as `final/` if it is complete, else as `last/`."""
    ended: Row = {"status": status, **({"error": error} if error else {})}
    if not entries:
        return ended
    last = entries[-1]
    names = {name: old for name, old in (ACCURACIES | VOTES).items() if old in last["test"]}
    results = {"iteration": last["n"], **{name: last["test"][old] for name, old in names.items()}}
    trained = [{**(entry["train"] or {}), **(entry["finetune"] or {})} for entry in entries]
    kind = "final" if status in COMPLETE else "last"
    return {
        **ended,
        **{f"{kind}/{name}": value for name, value in {**results, **_gains(last, entries[0])}.items()},
        **{f"total/{name}": sum(part.get(name, 0) for part in trained) for name in ("kept", "steps", "tokens")},
        "total/seconds": sum(map(_computing_s, entries)),
    }


def informative(name: str, row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether a metric deserves a chart, by the row that has it and its `first` value; counts never do."""
    if name in IF_VARYING:
        return bool(row[name] != first[name])
    if name in IF_GRADED:
        return bool(row[name] != row.get(IF_GRADED[name]))
    return any(name == one or (one.endswith("/") and name.startswith(one)) for one in ALWAYS)


def test_rows(info: RunInfo, outcomes: Sequence[Mapping[str, Any]], count: int) -> Iterator[list[Any]]:
    """Yields the lines of outcomes.jsonl for at most `count` questions, the same ones in each iteration."""
    yield from (_row(info, line) for line in spread([one for one in outcomes if one["sample"] == 0], count))


def pair_rows(info: RunInfo, pairs: Sequence[Mapping[str, Any]], count: int) -> Iterator[list[Any]]:
    """Yields at most `count` lines of pairs.jsonl: half of them kept ones, if there are enough of both."""
    kept, dropped = ([one for one in pairs if one["kept"] is verdict] for verdict in (True, False))
    of_kept = max(count - count // 2, count - len(dropped))
    chosen = spread(kept, of_kept)
    for line in [*chosen, *spread(dropped, count - len(chosen))]:
        yield [*_row(info, line), line["kept"], line.get("dropped") or ""]


def _row(info: RunInfo, line: Mapping[str, Any]) -> list[Any]:
    identity = line.get("question_id", line["question"])  # in schema 1, `question` is the id
    reference = " | ".join(info.references.get(identity, ()))
    right = ["right" if line[name] >= info.correct_at else "wrong" for name in ("r1", "r2")]
    answers = [line[name] for name in ("y1", "y2", "r1", "r2")]
    return [line["n"], line["question"], reference, *answers, " → ".join(right)]


def spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` of the items, evenly spaced, in order."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)
