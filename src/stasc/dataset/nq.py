"""Natural Questions, the open-domain version: real questions to a search engine, with short answers.

Source: Lee et al. 2019, arXiv 1906.00300; CC BY-SA 3.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stasc.dataset.split import Sizes, check_on_bad_row, check_split, divide, in_order, take
from stasc.hub import retries_told_once
from stasc.paths import path_of
from stasc.records import Question

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Nq(Sizes):
    """Questions of the Hugging Face dataset `path`, or of a local folder that holds the same.

    Its train split gives the training and validation questions, its validation split the test questions, as usual for
    NQ, whose own test split is not public.
    """

    path: str  # a dataset of the hub, a folder of parquet or JSON Lines files, or a folder from save_to_disk
    revision: str | None  # branch, tag or commit on the hub; null: the newest
    on_bad_row: str  # fail, or skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_on_bad_row(self.on_bad_row)

    def __call__(self, split: str) -> tuple[Question, ...]:
        check_split(split)
        hub_split = _hub_split(split)
        data = self._load(hub_split)
        bad = self._bad(data, hub_split) if self.on_bad_row == "skip" else {}
        names = (f"nq/{hub_split}/{row}" for row in range(len(data)))
        rows = in_order((name for name in names if name not in bad), self.seed, str)
        if split == "test":
            chosen = take(rows, self.n_test, "dataset.n_test")
        else:
            train, validation = divide(rows, self.n_train, self.n_validation, group_of=str)
            chosen = train if split == "train" else validation
        part = data.select([int(name.rpartition("/")[2]) for name in chosen])
        return tuple(
            self._question(name, text, answers)
            for name, text, answers in zip(chosen, part["question"], part["answer"], strict=True)
        )

    def skipped(self, split: str) -> dict[str, str]:
        """The rows left out of the split's data, and what is wrong with each."""
        if self.on_bad_row == "fail":
            return {}
        return self._bad(self._load(_hub_split(split)), _hub_split(split))

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

    def _bad(self, data: datasets.Dataset, hub_split: str) -> dict[str, str]:
        """The rows that are no questions, as `skipped` gives them."""
        bad = {}
        for row, (text, answers) in enumerate(zip(data["question"], data["answer"], strict=True)):
            try:
                self._question(f"nq/{hub_split}/{row}", text, answers)
            except ValueError as error:
                bad[f"nq/{hub_split}/{row}"] = str(error)
        return bad

    def _question(self, name: str, text: object, answers: object) -> Question:
        texts = [text, *(answers if isinstance(answers, list) else [answers])]
        if len(texts) == 1 or not all(map(_is_text, texts)):
            _, hub_split, row = name.split("/")
            raise ValueError(
                f"dataset.path={self.path}: row {row} of {hub_split!r} lacks a question or an answer, or holds a NUL"
            )
        asked, *references = map(str, texts)
        return Question(name, asked, tuple(dict.fromkeys(references)))


def _hub_split(split: str) -> str:
    return "validation" if split == "test" else "train"


def _is_text(part: object) -> bool:
    return isinstance(part, str) and bool(part.strip()) and "\0" not in part
