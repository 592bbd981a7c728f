"""How questions are divided into train, validation and test, and the check that no question is in two of them.

The order of a split depends on `dataset.seed` and on what the questions say, not on the run's seed, the sizes asked
for, or the data's names and order: a smaller split is the beginning of a larger one, and a file that was renamed,
shuffled or converted gives the same splits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Self, TypeVar

from stasc.records import Question
from stasc.tasks.text import normal_form, without_zero_width
from stasc.units import counted

SPLITS = ("train", "validation", "test")
T = TypeVar("T")
Problem = Callable[[Sequence[str]], str | None]  # of references: why no answer can be right


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


@dataclass(frozen=True)
class Judged:
    """A dataset with rows of the user's, of which some may be bad: as the dataset itself says, or a reward."""

    def _problem(self, references: Sequence[str]) -> str | None:
        return None

    def judged_by(self, problem: Problem) -> Self:
        """The same dataset, where a row is bad as well if `problem` names what is wrong with its references."""
        judged = replace(self)
        object.__setattr__(judged, "_problem", problem)  # in place of the method: no setting, and so no field
        return judged


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")


def check_on_bad_row(on_bad_row: str) -> None:
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"dataset.on_bad_row={on_bad_row}: expected fail or skip")


def row_name(content: bytes, taken: Collection[str]) -> str:
    """Names a row of the data that is no question by what it holds; a number tells those apart that hold the same."""
    name = hashlib.sha256(content).hexdigest()[:16]
    return next(one for one in chain([name], (f"{name}-{i}" for i in count(2))) if one not in taken)


def describe_skipped(reasons: Collection[str]) -> str:
    """How many rows were left out, and what is wrong with the first of them."""
    return f"dataset.on_bad_row=skip: left out {counted(len(reasons), 'bad row')}: {_first(reasons)}"


def describe_repeated(reasons: Collection[str]) -> str:
    """How many rows repeat a question, and the first of them."""
    return (
        f"dataset: {counted(len(reasons), 'row')} with a question that another row has: {_first(reasons)} "
        "(all rows of a question are in the same split)"
    )


def _first(reasons: Collection[str], shown: int = 3) -> str:
    return "; ".join(list(reasons)[:shown]) + ("; …" if len(reasons) > shown else "")


def identity(text: str) -> str:
    """Returns a digest of a question's text, by which it is known whatever its row and file.

    Two texts are the same question when they differ in case, white space, quotation marks, closing punctuation and
    zero-width characters only. References have no part in it: a question whose reference was corrected stays in its
    split, and one that stands there twice with other references would be in training and test otherwise.
    """
    return hashlib.sha256(_fold(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Ordered:
    """Questions in the order of a seed, with what each is known by, and which rows repeat a question."""

    questions: Sequence[Question]
    known_as: Mapping[str, str]  # identity by the question's id
    repeated: tuple[str, ...]

    def group_of(self, question: Question) -> str:
        return self.known_as[question.id]


def arrange(
    rows: Sequence[tuple[str, Question]], seed: int, *, named: bool, elsewhere: Collection[str] = ()
) -> Ordered:
    """The questions of rows, each with its place in the data, in an order that their texts and the seed decide.

    A question that is not `named` by the data gets its identity as its id; a further row of it a number behind that,
    which goes by what the row says, not by where it stands. Questions that are `elsewhere`, by their identities, are
    left out.
    """
    first: dict[str, str] = {}
    known, repeated = [], []
    for place, question in rows:
        group = identity(question.text)
        if group in elsewhere:
            repeated.append(f"{place} has a question of the test, and is left to it")
            continue
        if group in first:
            repeated.append(f"{place} has the question of {first[group]}")
        first.setdefault(group, place)
        known.append((group, place, question))
    known.sort(key=lambda one: (_rank(one[0], seed), one[2].text, one[2].references, one[2].id if named else ""))
    questions, known_as, seen = [], {}, dict.fromkeys(first, 0)
    for group, _, question in known:
        seen[group] += 1
        id = question.id if named else group if seen[group] == 1 else f"{group}-{seen[group]}"
        questions.append(replace(question, id=id))
        known_as[id] = group
    return Ordered(questions, known_as, tuple(repeated))


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def in_order(items: Iterable[T], seed: int, id_of: Callable[[T], str]) -> list[T]:
    """`items` in a random order that does not change with the machine, or with what else is among them."""
    return sorted(items, key=lambda item: _rank(id_of(item), seed))


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

    by_text = {_fold(question.text): question.id for question in train}
    for question in test:
        if twin := by_text.get(_fold(question.text)):
            raise ValueError(
                f"{twin!r} of the train split and {question.id!r} of the test split are the same question, "
                f"{question.text[:80]!r}: remove one from the data"
            )
    by_id = {question.id for question in train}
    for question in test:
        if question.id in by_id:
            raise ValueError(
                f"id {question.id!r} is in the train and in the test split: make the ids unique "
                "(dataset.id names their column)"
            )


def _fold(text: str) -> str:
    """A question without its form; of one that has nothing else, the question itself."""
    plain = re.sub(r"['\"‘’“”«»¿¡]", "", normal_form("NFKC", without_zero_width(text)).casefold())
    return " ".join(re.sub(r"[.,;:!?…]+(?=\s|$)", " ", plain).split()) or text
