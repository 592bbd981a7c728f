"""Settings outside the design choices: the loop, sampling, evaluation and the store."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from stasc.settings.check import expect, expect_correct_at


@dataclass(frozen=True)
class Loop:
    """Algorithm 1: N iterations, at most `patience` in a row that keep nothing. Rewards from `correct_at` are right."""

    seed: int
    iterations: int
    patience: int
    correct_at: float

    def __post_init__(self) -> None:
        expect("seed", self.seed, self.seed >= 0, "at least 0")
        expect("iterations", self.iterations, self.iterations >= 0, "at least 0 (0: evaluate M_0 only)")
        expect("patience", self.patience, self.patience >= 1, "at least 1")
        expect_correct_at("correct_at", self.correct_at)


@dataclass(frozen=True)
class Sampling:
    """Sampling settings for training questions. Temperature 0 is greedy, top_p 1 the whole distribution.

    `stop` strings end an answer and are cut off it; null: those of the chat template.
    """

    n_init: int
    n_corr: int
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: list[str] | None

    def __post_init__(self) -> None:
        expect("sampling.stop", self.stop, all(self.stop or ["one"]), "null or a list of strings, none of them empty")
        typed = any(re.match(r"\\n(?![a-z])", text) for text in self.stop or [])
        line_break = "a line break, found a backslash and an n: in bash, write $'sampling.stop=[\"\\n\"]', with the $"
        expect("sampling.stop", self.stop, not typed, line_break)
        expect("sampling.n_init", self.n_init, self.n_init >= 1, "at least 1")
        expect("sampling.n_corr", self.n_corr, self.n_corr >= 1, "at least 1")
        _check_decoding("sampling", self.temperature, self.top_p, self.max_new_tokens)

    @property
    def warning(self) -> str | None:
        """A warning about settings that are valid one by one but make equal answers; None if there are none."""
        repeated = [f"sampling.{name}={n}" for name in ("n_init", "n_corr") if (n := getattr(self, name)) > 1]
        if self.temperature or not repeated:
            return None
        return (
            f"sampling.temperature=0 is greedy: the answers of {' and of '.join(repeated)} are all the same; "
            "set 1, or a temperature above 0"
        )


@dataclass(frozen=True)
class Evaluation:
    """Sampling settings for held-out questions, with one correction per answer. Null inherits from `sampling`."""

    split: str
    n_init: int
    temperature: float | None
    top_p: float | None
    max_new_tokens: int | None
    batch: int | None

    def __post_init__(self) -> None:
        expect("evaluation.split", self.split, self.split in ("test", "validation"), "test or validation")
        expect("evaluation.n_init", self.n_init, self.n_init >= 1, "at least 1")
        _check_decoding("evaluation", self.temperature, self.top_p, self.max_new_tokens)
        expect("evaluation.batch", self.batch, self.batch is None or self.batch >= 1, "null or at least 1")

    def sampling(self, train: Sampling) -> Sampling:
        """Returns the sampling settings of an evaluation, given those of training."""
        own = {name: getattr(self, name) for name in ("temperature", "top_p", "max_new_tokens")}
        changes = {name: value for name, value in own.items() if value is not None}
        return replace(train, n_init=self.n_init, n_corr=1, **changes)


@dataclass(frozen=True)
class StoreConfig:
    """Where artifacts are stored, which weights are kept, and whether runs resume."""

    dir: str
    keep_models: str
    resume: str
    explain: bool

    def __post_init__(self) -> None:
        expect("store.keep_models", self.keep_models, self.keep_models in ("last", "all"), "last or all")
        expect("store.resume", self.resume, self.resume in ("auto", "must", "never"), "auto, must or never")
        expect("store.dir", self.dir, bool(self.dir.strip()), "a folder")


def _check_decoding(group: str, temperature: float | None, top_p: float | None, max_new_tokens: int | None) -> None:
    expect(f"{group}.temperature", temperature, temperature is None or temperature >= 0, "at least 0 (0: greedy)")
    expect(f"{group}.top_p", top_p, top_p is None or 0 < top_p <= 1, "0 < top_p <= 1")
    expect(f"{group}.max_new_tokens", max_new_tokens, max_new_tokens is None or max_new_tokens >= 1, "at least 1")
