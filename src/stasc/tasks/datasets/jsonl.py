"""Questions from JSON Lines files of your own: one JSON object per line, with a question and its references."""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass
from itertools import combinations

from stasc.machine.paths import path_of
from stasc.records import Question, Split
from stasc.tasks.datasets.split import SPLITS, Ordered, Problem, Rows, arrange, check_split, no_problem, take, without
from stasc.tasks.text import without_zero_width
from stasc.units import counted


@dataclass(frozen=True)
class Jsonl(Rows):
    """Questions from one file that is divided, or from one file per split.

    One file, in the seed's order, begins with the test questions; training questions come next, validation questions
    are the last. Without a validation file, validation questions are the last of the training file. Rows of one
    question are never divided.
    """

    path: str | None  # one file for all splits
    train_path: str | None
    validation_path: str | None
    test_path: str | None
    question: str  # column names
    answer: str
    id: str | None  # null: a digest of the question's text
    answer_pattern: str | None  # regular expression, found anywhere in an answer; its first group is the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("train_path", "validation_path", "test_path") if getattr(self, name)]
        if self.path and given:
            raise ValueError(f"dataset.path and dataset.{given[0]} are both set: take one file, or one per split")
        if not self.path and not given:
            raise ValueError(
                "dataset.path is not set: dataset.path=FILE.jsonl divides one file; "
                "dataset.train_path and dataset.test_path name one for each split"
            )
        for name in ("train_path", "test_path"):
            if given and name not in given:
                raise ValueError(f"dataset.{name} is not set, but dataset.{given[0]} is: both splits need their file")
        if self.path and self.n_test is None:
            raise ValueError("dataset.n_test=null would take all of dataset.path for the test: set dataset.n_test")
        if self.answer_pattern is not None:
            given_pattern = f"dataset.answer_pattern={self.answer_pattern!r}"
            try:
                groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                raise ValueError(f"{given_pattern} is no regular expression: {error}") from error
            if not groups:
                raise ValueError(f"{given_pattern} has no group: put ( ) around the answer")

    def __call__(self, split: str, problem: Problem = no_problem) -> Split:
        check_split(split)
        self._check_apart(problem)
        ordered = self._read(self._setting(split), problem)
        questions = ordered.questions
        self._check_sizes(split, len(questions))
        if split != "test" and self.validation_path:
            return ordered.split(split, take(questions, getattr(self, f"n_{split}"), f"dataset.n_{split}"))
        if split != "test" and self.path:
            tested = take(questions, self.n_test, "dataset.n_test")
            questions = without(tested, questions[len(tested) :], ordered.group_of)
        return ordered.split(split, self.part(split, questions, ordered.group_of))

    def _check_apart(self, problem: Problem) -> None:
        """Raises: ValueError if two files have a question in common, even if no split contains it at these sizes."""
        settings = [f"{name}_path" for name in SPLITS if getattr(self, f"{name}_path")]
        for one, other in combinations(settings, 2):
            known = {*self._read(one, problem).known_as.values()}
            ordered = self._read(other, problem)
            if common := [question for question in ordered.questions if ordered.group_of(question) in known]:
                raise ValueError(
                    f"dataset.{one} and dataset.{other} have {counted(len(common), 'question')} in common, "
                    f"e.g. {common[0].text[:80]!r}: remove them from one of the files"
                )

    def _check_sizes(self, split: str, there: int) -> None:
        """Checks that a file has enough questions for all splits that are cut from it.

        Raises: ValueError naming all settings that ask for too many, with sizes that fit.
        """
        apart = split == "test" or self.validation_path
        cut = ("test", "validation", "train") if self.path else (split,) if apart else ("validation", "train")
        sizes = dict(zip(SPLITS, (self.n_train, self.n_validation, self.n_test), strict=True))
        rest = "train" in cut and sizes["train"] is None
        asked = {name: n for name in cut if (n := sizes[name])}
        if sum(asked.values()) + rest <= there:
            return
        fitting = {"test": max(1, there // 5), "validation": there // 10, "train": "null"}
        if len(cut) == 1:
            fitting = dict.fromkeys(cut, "null")
        hint = " ".join(f"dataset.n_{name}={fitting[name]}" for name in cut if name in asked)
        raise ValueError(
            f"dataset.{self._setting(split)}={getattr(self, self._setting(split))}: {counted(there, 'question')}, "
            f"too few for {' and '.join(f'dataset.n_{name}={n}' for name, n in asked.items())}"
            f"{' with some left to train on' if rest else ''}"
            + (f"; for instance, set {hint}" if there > 1 else "; at least 2 are needed")
        )

    def _arranged(self, source: str, problem: Problem) -> Ordered:
        path = getattr(self, source)
        file = path_of(f"dataset.{source}", path)
        try:
            lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
        except OSError as error:
            raise ValueError(
                f"dataset.{source}={path}: {error.strerror or error}; expected a JSON Lines file"
            ) from error
        rows: list[tuple[str, Question]] = []
        line_of: dict[str, int] = {}
        bad: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                question = self._parse(line, problem)
                if self.id and question.id in line_of:
                    raise ValueError(f"id {question.id!r} is also that of line {line_of[question.id]}")
            except ValueError as error:
                self._refuse(line.strip(), f"{file}:{number}: {error}", bad)
                continue
            rows.append((f"{file}:{number}", question))
            line_of[question.id] = number
        if not rows:
            why = f": left out {counted(len(bad), 'bad row')}, first {next(iter(bad.values()))}" if bad else ""
            raise ValueError(f"dataset.{source}={path}: the file holds no question{why}")
        return arrange(rows, self.seed, bad)

    def _setting(self, split: str) -> str:
        """Returns the setting that names the split's file."""
        if self.path:
            return "path"
        return "train_path" if split == "validation" and not self.validation_path else f"{split}_path"

    def _parse(self, line: bytes, problem: Problem) -> Question:
        """Returns the question on a line, its id empty where no column gives one. Raises: ValueError saying why not."""
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_number, parse_int=_whole_number)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {_kind(row)}")

        question = self._column(row, "question", self.question)
        if not isinstance(question, str):
            raise ValueError(f"{self.question!r} is {_kind(question)}, expected a text")
        answer = self._column(row, "answer", self.answer)
        answers = [_text(one, self.answer) for one in (answer if isinstance(answer, list) else [answer])]
        if not answers:
            raise ValueError(f"{self.answer!r} is an empty list, expected at least one reference answer")
        if self.answer_pattern is not None:
            answers = [self._extract(one, self.answer_pattern) for one in answers]
        if why := problem(answers):
            raise ValueError(why)
        return Question(
            id=_text(self._column(row, "id", self.id), self.id) if self.id else "",
            text=_text(question, self.question),
            references=tuple(dict.fromkeys(answers)),
        )

    def _column(self, row: dict[str, object], setting: str, column: str) -> object:
        if column not in row:
            there = ", ".join(map(repr, row)) or "none"
            raise ValueError(f"no column {column!r} (dataset.{setting}); its columns are: {there}")
        return row[column]

    def _extract(self, answer: str, pattern: str) -> str:
        found = re.search(pattern, answer)
        if not found or not (found[1] or "").strip():
            raise ValueError(f"dataset.answer_pattern={pattern!r} finds nothing in {answer[-80:]!r}")
        return str(found[1]).strip()


def _number(literal: str) -> float:
    """Returns a JSON number, NaN if no float can represent it, such as 1e999 and 1e-999."""
    value = float(literal)
    lost = math.isinf(value) or (value == 0 and literal.lower().partition("e")[0].strip("-0."))
    return math.nan if lost else value


def _whole_number(literal: str) -> float:
    try:
        return int(literal)
    except ValueError:  # more digits than Python turns into a number
        return math.nan


def _text(value: object, column: str) -> str:
    """Returns a text or a number as text. Raises: ValueError if it is blank or cannot be encoded.

    NUL is refused as well: no text meant to be read contains it, and tokenizers drop it or stop there.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column!r} is or holds {_kind(value)}, expected a text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{column!r} is or holds a number that is too large, too small or too long: write it as a text, in quotes"
        )
    text = str(value)
    if not without_zero_width(text).strip():
        raise ValueError(f"{column!r} is or holds an empty text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{column!r} holds half a surrogate pair at character {error.start + 1}") from error
    if "\0" in text:
        raise ValueError(f"{column!r} holds a NUL at character {text.index(chr(0)) + 1}")
    return text


def _kind(value: object) -> str:
    kinds = {type(None): "null", dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON number")
