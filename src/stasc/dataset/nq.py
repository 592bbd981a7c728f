"""Natural Questions, the open-domain version: real questions to a search engine, with short answers.

Source: Lee et al. 2019, arXiv 1906.00300; CC BY-SA 3.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.dataset.split import Sizes, check_split, divide, in_order, take
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

    def __call__(self, split: str) -> tuple[Question, ...]:
        check_split(split)
        hub_split = "validation" if split == "test" else "train"
        data = self._load(hub_split)
        rows = in_order(range(len(data)), self.seed, lambda row: f"nq/{hub_split}/{row}")
        if split == "test":
            return self._questions(data, take(rows, self.n_test, "dataset.n_test"), hub_split)
        train, validation = divide(rows, self.n_train, self.n_validation, group_of=int)
        return self._questions(data, train if split == "train" else validation, hub_split)

    def _load(self, hub_split: str) -> datasets.Dataset:
        import datasets  # slow, and not needed for any other dataset

        folder = Path(self.path).expanduser()
        local = folder.is_dir()
        try:
            if (folder / "dataset_dict.json").is_file():
                data = datasets.load_from_disk(str(folder))[hub_split]
            else:
                source, revision = (str(folder), None) if local else (self.path, self.revision)
                data = datasets.load_dataset(source, split=hub_split, revision=revision)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
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

    def _questions(self, data: datasets.Dataset, rows: Sequence[int], hub_split: str) -> tuple[Question, ...]:
        chosen = data.select(rows)
        questions = []
        for row, text, answers in zip(rows, chosen["question"], chosen["answer"], strict=True):
            references = tuple(dict.fromkeys(answers)) if isinstance(answers, list) else (answers,)
            if not all(isinstance(part, str) and part.strip() for part in (text, *references)) or not references:
                raise ValueError(f"dataset.path={self.path}: row {row} of {hub_split!r} lacks a question or an answer")
            questions.append(Question(f"nq/{hub_split}/{row}", text, references))
        return tuple(questions)
