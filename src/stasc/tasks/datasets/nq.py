"""Natural Questions, the open-domain version: real questions to a search engine, with short answers.

Source: Lee et al. 2019, arXiv 1906.00300; CC BY-SA 3.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from stasc.machine.hub import retries_told_once
from stasc.machine.paths import path_of
from stasc.records import Question
from stasc.tasks.datasets.split import (
    Judged,
    Ordered,
    Sizes,
    arrange,
    check_on_bad_row,
    check_split,
    divide,
    row_name,
    take,
)

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

TEST = "validation"  # of the hub's splits


@dataclass(frozen=True)
class Nq(Judged, Sizes):
    """Questions of the Hugging Face dataset `path`, or of a local folder that holds the same.

    Its train split gives the training and validation questions, its validation split the test questions, as usual for
    NQ, whose own test split is not public. A question that is in both counts in the test alone.
    """

    path: str  # a dataset of the hub, a folder of parquet or JSON Lines files, or a folder from save_to_disk
    revision: str | None  # branch, tag or commit on the hub; null: the newest
    on_bad_row: str  # fail, or skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_on_bad_row(self.on_bad_row)

    def __call__(self, split: str) -> tuple[Question, ...]:
        check_split(split)
        ordered, _ = self._read(_hub_split(split))
        if split == "test":
            return tuple(take(ordered.questions, self.n_test, "dataset.n_test"))
        train, validation = divide(ordered.questions, self.n_train, self.n_validation, ordered.group_of)
        return tuple(train if split == "train" else validation)

    def skipped(self, split: str) -> dict[str, str]:
        """The rows left out of the split's data: a digest of each, and what is wrong with it."""
        return {} if self.on_bad_row == "fail" else self._read(_hub_split(split))[1]

    def repeated(self, split: str) -> tuple[str, ...]:
        """The rows of the split's data that have the question of an earlier row, or of the test's data."""
        return self._read(_hub_split(split))[0].repeated

    def _read(self, hub_split: str) -> tuple[Ordered, dict[str, str]]:
        """All questions of a split of the hub, in the seed's order, and its bad rows as `skipped` gives them."""
        if hub_split not in self._splits:
            rows, bad = self._parse_rows(hub_split)
            tested = {} if hub_split == TEST else dict.fromkeys(self._read(TEST)[0].known_as.values())
            self._splits[hub_split] = arrange(rows, self.seed, named=False, elsewhere=tested), bad
        return self._splits[hub_split]

    @cached_property
    def _splits(self) -> dict[str, tuple[Ordered, dict[str, str]]]:
        """Questions and bad rows, by split of the hub."""
        return {}

    def _parse_rows(self, hub_split: str) -> tuple[list[tuple[str, Question]], dict[str, str]]:
        """The rows that are questions, by their places, and those that are none.

        Raises: ValueError with the first row that is no question, if such rows are not to be left out.
        """
        data, rows = self._load(hub_split), []
        bad: dict[str, str] = {}
        for row, (text, answers) in enumerate(zip(data["question"], data["answer"], strict=True)):
            place = f"row {row} of {hub_split!r}"
            try:
                rows.append((place, self._question(text, answers)))
            except ValueError as error:
                if self.on_bad_row == "fail":
                    raise ValueError(f"dataset.path={self.path}: {place} {error}") from error
                bad[row_name(repr((text, answers)).encode("utf-8", "surrogatepass"), bad)] = (
                    f"dataset.path={self.path}: {place} {error}"
                )
        return rows, bad

    def _load(self, hub_split: str) -> datasets.Dataset:
        import datasets  # slow, and not needed for any other dataset

        folder = path_of("dataset.path", self.path)
        local = folder.is_dir()
        try:
            if (folder / "dataset_dict.json").is_file():
                data = datasets.load_from_disk(str(folder))[hub_split]
            else:
                source, revision = (str(folder), None) if local else (self.path, self.revision)
                with retries_told_once(f"dataset.path={self.path}"):
                    data = datasets.load_dataset(source, split=hub_split, revision=revision)
        # RuntimeError: data that come with code to load them, which this library no longer runs
        except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(
                f"dataset.path={self.path}: no split {hub_split!r} could be read from this "
                f"{'folder' if local else 'dataset of the hub'} ({type(error).__name__}: {error}); "
                "without a network, give a local copy: dataset.path=FOLDER"
            ) from error
        missing = {"question", "answer"} - set(data.column_names)
        if missing:
            raise ValueError(
                f"dataset.path={self.path}: the split {hub_split!r} has no column {', '.join(sorted(missing))}, "
                f"only {', '.join(data.column_names)}; dataset=jsonl reads data of another form"
            )
        return data

    def _question(self, text: object, answers: object) -> Question:
        texts = [text, *(answers if isinstance(answers, list) else [answers])]
        if len(texts) == 1 or not all(map(_is_text, texts)):
            raise ValueError("lacks a question or an answer, or holds a NUL")
        asked, *references = map(str, texts)
        if problem := self._problem(references):
            raise ValueError(f"is of no use: {problem}")
        return Question("", asked, tuple(dict.fromkeys(references)))


def _hub_split(split: str) -> str:
    return TEST if split == "test" else "train"


def _is_text(part: object) -> bool:
    return isinstance(part, str) and bool(part.strip()) and "\0" not in part
