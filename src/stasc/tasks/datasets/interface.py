"""The interface of datasets, and how a run asks them for its two splits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from stasc.records import Question, Split
from stasc.settings.signature import signature_of
from stasc.tasks.datasets.split import Problem, check_disjoint
from stasc.units import counted

log = logging.getLogger(__name__)


class Dataset(Protocol):
    """Gives the questions of a split, the same ones every time."""

    def __call__(self, split: str) -> Split | Sequence[Question]:
        """Returns the questions of `train`, `validation` or `test`; no question is in two of them.

        A `Split` also names the rows that were skipped, with the reason, and those that repeat a question.
        Raises: ValueError naming the setting, if a split cannot be filled.
        """
        ...


class JudgedDataset(Protocol):
    """A dataset that leaves out, or refuses, rows which the reward cannot judge.

    An option is taken for one if it has a parameter called `problem`.
    """

    def __call__(self, split: str, problem: Problem) -> Split | Sequence[Question]:
        """Returns the questions of a split. A row is bad if `problem(references)` is not None: it says why."""
        ...


def load(dataset: Dataset | JudgedDataset, names: tuple[str, str], problem: Problem) -> tuple[Split, Split]:
    """Returns the training split and the evaluated split, and logs which rows were skipped or repeated.

    Raises: ValueError if a split is empty, the splits share a question, or no answer to a question can be right.
    """

    def judge(references: Sequence[str]) -> str | None:  # hashable whatever the reward is: datasets cache by it
        return problem(references)

    splits = [_split(dataset, name, judge) for name in names]
    if skipped := dict.fromkeys(reason for split in splits for reason in split.skipped.values()):
        log.warning(describe_skipped(skipped))
    if repeated := dict.fromkeys(row for split in splits for row in split.repeated):
        log.warning(describe_repeated(repeated))
    for split in splits:
        if not split.questions:
            raise ValueError(f"dataset.n_{split.name}: the {split.name} split has no question")
        for question in split.questions:
            if why := problem(question.references):
                raise ValueError(f"question {question.name}: {why}")
    train, other = splits
    check_disjoint(train.questions, other.questions)
    return train, other


def _split(dataset: Dataset | JudgedDataset, name: str, problem: Problem) -> Split:
    signature = signature_of(dataset)
    judged = signature is not None and "problem" in signature.parameters
    found = dataset(name, problem) if judged else dataset(name)  # type: ignore[call-arg]
    return found if isinstance(found, Split) else Split(name, tuple(found))


def describe_skipped(reasons: Collection[str]) -> str:
    """Returns how many rows were left out, and what is wrong with the first of them."""
    return f"dataset.on_bad_row=skip: left out {counted(len(reasons), 'bad row')}: {_first(reasons)}"


def describe_repeated(reasons: Collection[str]) -> str:
    """Returns how many rows repeat a question, and the first of them."""
    return (
        f"dataset: {counted(len(reasons), 'row')} with a question that another row has: {_first(reasons)} "
        "(all rows of a question are in the same split)"
    )


def _first(reasons: Collection[str], shown: int = 3) -> str:
    return "; ".join(list(reasons)[:shown]) + ("; …" if len(reasons) > shown else "")
