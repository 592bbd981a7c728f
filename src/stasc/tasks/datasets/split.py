"""Splitting: divides questions into train, validation and test, and checks that no question is in two of them.

The order of a split depends on `dataset.seed` and the questions' texts only, not on the run's seed, the sizes, or the
data's names and order: a smaller split is the beginning of a larger one, and a file that was renamed, shuffled or
converted gives the same splits.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, count
from typing import TypeVar

from stasc.records import Question, Split
from stasc.settings.check import expect
from stasc.tasks.text import normal_form, without_zero_width
from stasc.units import counted

SPLITS = ("train", "validation", "test")
T = TypeVar("T")
Problem = Callable[[Sequence[str]], str | None]  # says why no answer can match the references; None if one can


def no_problem(references: Sequence[str]) -> str | None:
    """Returns None: without a reward's judgement, an answer can match any references."""
    return None


@dataclass(frozen=True)
class Sizes:
    """The sizes of the splits, where null means all available questions, and the seed that divides them."""

    n_train: int | None
    n_validation: int | None
    n_test: int | None
    seed: int  # divides the data; runs with different run seeds share the questions

    def __post_init__(self) -> None:
        for name, least in (("n_train", 1), ("n_validation", 0), ("n_test", 1)):
            n = getattr(self, name)
            expect(f"dataset.{name}", n, n is None or n >= least, f"at least {least}, or null for all there are")

    def part(
        self, split: str, questions: Sequence[Question], group_of: Callable[[Question], object]
    ) -> Sequence[Question]:
        """Returns a split's questions, taken from those for the test or from those for training and validation."""
        if split == "test":
            return take(questions, self.n_test, "dataset.n_test")
        train, validation = divide(questions, self.n_train, self.n_validation, group_of)
        return train if split == "train" else validation


@dataclass(frozen=True)
class Rows(Sizes, ABC):
    """A dataset of rows from files. A bad row ends the run or is left out."""

    on_bad_row: str  # fail, or skip

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("dataset.on_bad_row", self.on_bad_row, self.on_bad_row in ("fail", "skip"), "fail or skip")

    @abstractmethod
    def _arranged(self, source: str, problem: Problem) -> Ordered:
        """Returns all questions of a file or data set. A row is bad if `problem(references)` says why."""

    def _read(self, source: str, problem: Problem) -> Ordered:
        """Returns `_arranged` of these arguments, computed once."""
        if (source, problem) not in self._known:
            self._known[source, problem] = self._arranged(source, problem)
        return self._known[source, problem]

    @cached_property
    def _known(self) -> dict[tuple[str, Problem], Ordered]:
        return {}

    def _refuse(self, row: bytes, reason: str, bad: dict[str, str]) -> None:
        """Adds a row to the bad ones, named by a digest of its content, with a number if another row has the same.

        Raises: ValueError with the reason if bad rows end the run.
        """
        if self.on_bad_row == "fail":
            raise ValueError(reason)
        name = _digest(row)
        bad[next(one for one in chain([name], (f"{name}-{i}" for i in count(2))) if one not in bad)] = reason


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def identity(text: str) -> str:
    """Returns a digest that identifies a question by its text, whatever its row and file.

    Two texts are the same question if they differ only in case, white space, quotation marks, closing punctuation and
    zero-width characters. References do not count: a question whose reference was corrected stays in its split, and
    two rows of a question with different references are never in training and test.
    """
    return _digest(_fold(text).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Ordered:
    """The questions of a file in the order of a seed, and the rows that are no questions or repeat one."""

    questions: Sequence[Question]
    known_as: Mapping[str, str]  # identity by the question's id
    repeated: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # what is wrong with a bad row, by its name

    def group_of(self, question: Question) -> str:
        return self.known_as[question.id]

    def split(self, name: str, questions: Iterable[Question]) -> Split:
        """Returns a split of some of the questions, with the rows that the file skips or repeats."""
        return Split(name, tuple(questions), self.skipped, self.repeated)


def arrange(
    rows: Iterable[tuple[str, Question]], seed: int, skipped: Mapping[str, str], elsewhere: Collection[str] = ()
) -> Ordered:
    """Returns the questions of rows in an order that their texts and the seed decide.

    Args:
        rows: each question with the place of its row in the data, for messages. A question without an id gets its
            identity, followed by a number for further rows of the question, which depends on what the row says, not on
            where it is.
        skipped: what is wrong with each bad row, by its name.
        elsewhere: identities of questions to leave out.
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
        known.append((group, question))
    known.sort(key=lambda one: (rank(one[0], seed), one[1].text, one[1].references, one[1].id))
    questions, known_as, seen = [], {}, dict.fromkeys(first, 0)
    for group, question in known:
        seen[group] += 1
        id = question.id or (group if seen[group] == 1 else f"{group}-{seen[group]}")
        questions.append(replace(question, id=id))
        known_as[id] = group
    return Ordered(questions, known_as, tuple(repeated), skipped)


def rank(name: str, seed: int) -> bytes:
    """Returns the sort key of a random order that depends neither on the machine nor on the other items."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def take(items: Sequence[T], n: int | None, setting: str) -> Sequence[T]:
    """Returns the first `n` items. Raises: ValueError naming `setting` if they are too few."""
    if n is not None and n > len(items):
        raise ValueError(
            f"{setting}={n}: only {counted(len(items), 'question')} left for it; ask for at most that many"
        )
    return items[:n]


def divide(
    items: Sequence[T], n_train: int | None, n_validation: int | None, group_of: Callable[[T], object]
) -> tuple[Sequence[T], Sequence[T]]:
    """Returns training items from the beginning and validation items from the end, last one first.

    None takes what the other leaves. Items of one group are never divided between the two.
    """
    if n_train is None and n_validation is None:
        raise ValueError("dataset.n_train=null and dataset.n_validation=null would both take all: set one of them")
    if n_train is None:
        validation = take(items[::-1], n_validation, "dataset.n_validation")
        return without(validation, items, group_of), validation
    train = take(items, n_train, "dataset.n_train")
    return train, take(without(train, items[::-1], group_of), n_validation, "dataset.n_validation")


def without(taken: Iterable[T], items: Iterable[T], group_of: Callable[[T], object]) -> Sequence[T]:
    """Returns the items whose group has no item in `taken`."""
    groups = {group_of(item) for item in taken}
    return [item for item in items if group_of(item) not in groups]


def check_disjoint(train: Sequence[Question], test: Sequence[Question]) -> None:
    """Checks that no id and no question, by its `identity`, is in both splits, and that ids are unique.

    Raises: ValueError naming the ids and the settings to change.
    """
    way_out = "make the ids unique (dataset.id names their column)"
    for name, questions in (("train", train), ("test", test)):
        (id, often), *_ = Counter(question.id for question in questions).most_common(1) or [("", 0)]
        if often > 1:
            raise ValueError(f"id {id!r} is twice in the {name} split: {way_out}")
    by_text = {_fold(question.text): question.id for question in train}
    for question in test:
        if twin := by_text.get(_fold(question.text)):
            raise ValueError(
                f"{twin!r} of the train split and {question.id!r} of the test split are the same question, "
                f"{question.text[:80]!r}: remove one from the data"
            )
    if common := {question.id for question in train} & {question.id for question in test}:
        raise ValueError(f"id {min(common)!r} is in the train and in the test split: {way_out}")


def _fold(text: str) -> str:
    """Returns a question without its form; the question itself if nothing else is left."""
    plain = re.sub(r"['\"‘’“”«»¿¡]", "", normal_form("NFKC", without_zero_width(text)).casefold())
    return " ".join(re.sub(r"[.,;:!?…]+(?=\s|$)", " ", plain).split()) or text
