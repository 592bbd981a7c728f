"""How questions are divided into train, validation and test, and the check that no question is in two of them.

The order of a split depends on `dataset.seed` and on what is ordered, not on the run's seed and not on the sizes asked
for: a smaller split is the beginning of a larger one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stasc.records import Question
from stasc.units import counted

SPLITS = ("train", "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How many questions the splits have, where null means all there are, and the seed that divides them."""

    n_train: int | None
    n_validation: int | None
    n_test: int | None
    seed: int  # of the division; all seeds of a run share its questions

    def __post_init__(self) -> None:
        for name, n, least in (
            ("n_train", self.n_train, 1),
            ("n_validation", self.n_validation, 0),
            ("n_test", self.n_test, 1),
        ):
            if n is not None and n < least:
                raise ValueError(f"dataset.{name}={n}: expected at least {least}, or null for all there are")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")


def check_on_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"dataset.on_bad_row={on_bad_row}: expected fail or skip")


def describe_skipped(reasons: Collection[str], shown: int = 3) -> str:
    """How many rows were left out, and what is wrong with the first of them."""
    first = "; ".join(list(reasons)[:shown]) + ("; …" if len(reasons) > shown else "")
    return f"dataset.on_bad_row=skip: left out {counted(len(reasons), 'bad row')}: {first}"


def in_order(items: Iterable[T], seed: int, id_of: Callable[[T], str]) -> list[T]:
    """`items` in a random order that does not change with the machine, or with what else is among them."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{id_of(item)}".encode()).digest())


def take(items: Sequence[T], n: int | None, setting: str) -> Sequence[T]:
    """The first `n` items; `setting` is what asks for them."""
    if n is not None and n > len(items):
        raise ValueError(
            f"{setting}={n}: only {counted(len(items), 'question')} left for it; ask for at most that many"
        )
    return items[:n]


def divide(
    items: Sequence[T], n_train: int | None, n_validation: int | None, group_of: Callable[[T], object]
) -> tuple[Sequence[T], Sequence[T]]:
    """Training items from the beginning and validation items from the end, last one first; null takes what is left.

    Items of one group are never divided between the two.
    """

    def without(taken: Sequence[T], some: Sequence[T]) -> Sequence[T]:
        groups = {group_of(item) for item in taken}
        return [item for item in some if group_of(item) not in groups]

    if n_train is None and n_validation is None:
        raise ValueError("dataset.n_train=null and dataset.n_validation=null would both take all: set one of them")
    if n_train is None:
        validation = take(items[::-1], n_validation, "dataset.n_validation")
        return without(validation, items), validation
    train = take(items, n_train, "dataset.n_train")
    return train, take(without(train, items[::-1]), n_validation, "dataset.n_validation")


def check_disjoint(train: Sequence[Question], test: Sequence[Question]) -> None:
    """Check that nothing of `test` has been trained on: no id and no question is in both, and ids are unique.

    Questions are the same when they differ in case, white space, quotation marks and closing punctuation only.
    Raises: ValueError naming the ids and the settings to change.
    """
    for name, questions in (("train", train), ("test", test)):
        seen: set[str] = set()
        for question in questions:
            if question.id in seen:
                raise ValueError(
                    f"id {question.id!r} is twice in the {name} split: make the ids unique "
                    "(dataset.id names their column)"
                )
            seen.add(question.id)

    by_id = {question.id for question in train}
    by_text = {_fold(question.text): question.id for question in train}
    for question in test:
        if question.id in by_id:
            raise ValueError(
                f"id {question.id!r} is in the train and in the test split: make the ids unique "
                "(dataset.id names their column), or rename one of the files"
            )
        if twin := by_text.get(_fold(question.text)):
            raise ValueError(
                f"{twin!r} of the train split and {question.id!r} of the test split are the same question, "
                f"{question.text[:80]!r}: remove one from the data, or divide it otherwise with dataset.seed"
            )


def _fold(text: str) -> str:
    text = re.sub(r"['\"‘’“”«»¿¡]", "", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(re.sub(r"[.,;:!?…]+(?=\s|$)", " ", text).split())
