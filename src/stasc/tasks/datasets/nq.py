"""Natural Questions, the open-domain version: real questions to a search engine, with short answers.

Source: Lee et al. 2019, arXiv 1906.00300; CC BY-SA 3.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stasc.machine.hub import log_retries_once
from stasc.machine.paths import path_of
from stasc.records import Question, Split
from stasc.tasks.datasets.split import Ordered, Problem, Rows, arrange, check_split, divide, no_problem, take

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

TEST = "validation"  # the hub's split that the test questions come from


@dataclass(frozen=True)
class Nq(Rows):
    """Questions of the Hugging Face dataset `path`, or of a local copy.

    The hub's train split gives the training and validation questions, its validation split the test questions, as usual
    for NQ, whose own test split is not public. A question in both belongs to the test only.
    """

    path: str  # a dataset of the hub, a folder of parquet or JSON Lines files, or a folder from save_to_disk
    revision: str | None  # branch, tag or commit on the hub; null: the newest

    def __call__(self, split: str, problem: Problem = no_problem) -> Split:
        check_split(split)
        ordered = self._read(TEST if split == "test" else "train", problem)
        if split == "test":
            return ordered.split(split, take(ordered.questions, self.n_test, "dataset.n_test"))
        train, validation = divide(ordered.questions, self.n_train, self.n_validation, ordered.group_of)
        return ordered.split(split, train if split == "train" else validation)

    def _arranged(self, source: str, problem: Problem) -> Ordered:
        """Returns all questions of a split of the hub; the train split's without those of the test."""
        data, rows = self._load(source), []
        bad: dict[str, str] = {}
        for number, (text, answers) in enumerate(zip(data["question"], data["answer"], strict=True)):
            place = f"row {number} of {source!r}"
            try:
                rows.append((place, _question(text, answers, problem)))
            except ValueError as error:
                row = repr((text, answers)).encode("utf-8", "surrogatepass")
                self._refuse(row, f"dataset.path={self.path}: {place} {error}", bad)
        tested = () if source == TEST else {*self._read(TEST, problem).known_as.values()}
        return arrange(rows, self.seed, bad, named=False, elsewhere=tested)

    def _load(self, hub_split: str) -> datasets.Dataset:
        import datasets  # slow, and only needed here

        folder = path_of("dataset.path", self.path)
        local = folder.is_dir()
        try:
            if (folder / "dataset_dict.json").is_file():
                data = datasets.load_from_disk(str(folder))[hub_split]
            else:
                source, revision = (str(folder), None) if local else (self.path, self.revision)
                with log_retries_once(f"dataset.path={self.path}"):
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


def _question(text: object, answers: object, problem: Problem) -> Question:
    """Returns the question of a row. Raises: ValueError saying what is wrong with the row."""
    texts = [text, *(answers if isinstance(answers, list) else [answers])]
    if len(texts) == 1 or not all(map(_is_text, texts)):
        raise ValueError("lacks a question or an answer, or holds a NUL")
    asked, *references = map(str, texts)
    if why := problem(references):
        raise ValueError(f"is of no use: {why}")
    return Question("", asked, tuple(dict.fromkeys(references)))


def _is_text(part: object) -> bool:
    return isinstance(part, str) and bool(part.strip()) and "\0" not in part
