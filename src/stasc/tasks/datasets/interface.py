"""The interface of datasets, and how a run asks them for its two splits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from stasc.records import Question, Split
from stasc.settings.calls import parameters
from stasc.tasks.datasets.split import Problem, check_disjoint
from stasc.units import counted

log = logging.getLogger(__name__)


class Dataset(Protocol):
    """Gives the questions of a split, the same ones every time."""

    def __call__(self, split: str) -> Split | Sequence[Question]:
        """Returns the questions of `train`, `validation` or `test`; no question is in two of them.

        A `Split` also names the rows that were skipped, with the reason, and those that repeat a question. An option
        with a second parameter called `problem` is given that function: a row is bad if `problem(references)` says why
        no answer to it can be right.
        Raises: ValueError naming the setting, if a split cannot be filled.
        """


def load(dataset: Dataset, names: tuple[str, str], problem: Problem) -> tuple[Split, Split]:
    """Returns the training split and the evaluated split, and logs which rows were skipped or repeated.

    Raises: ValueError if a split is empty, the splits share a question, or no answer to a question can be right.
    """

    def judge(references: Sequence[str]) -> str | None:  # hashable whatever the reward is: datasets cache by it
        return problem(references)

    more = (judge,) if "problem" in parameters(dataset) else ()
    found = [(name, dataset(name, *more)) for name in names]
    splits = [some if isinstance(some, Split) else Split(name, tuple(some)) for name, some in found]
    if skipped := dict.fromkeys(reason for split in splits for reason in split.skipped.values()):
        log.warning(describe_skipped(skipped))
    if repeated := dict.fromkeys(row for split in splits for row in split.repeated):
        log.warning(
            "dataset: %s with a question that another row has: %s (all rows of a question are in the same split)",
            *(counted(len(repeated), "row"), _first(repeated)),
        )
    for split in splits:
        if not split.questions:
            raise ValueError(f"dataset.n_{split.name}: the {split.name} split has no question")
        for question in split.questions:
            if why := problem(question.references):
                raise ValueError(f"question {question.name}: {why}")
    train, other = splits
    check_disjoint(train.questions, other.questions)
    return train, other


def describe_skipped(reasons: Collection[str]) -> str:
    """Returns how many rows were left out, and what is wrong with the first of them."""
    return f"dataset.on_bad_row=skip: left out {counted(len(reasons), 'bad row')}: {_first(reasons)}"


def _first(reasons: Collection[str], shown: int = 3) -> str:
    return "; ".join(list(reasons)[:shown]) + ("; …" if len(reasons) > shown else "")
