"""Plans a run: derives the keys of its stages before any is computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stasc.machine.sealed import digest
from stasc.records import Answer, Keyed, Pair, Split
from stasc.store.keys import Description, StageDescriptions


class Step(NamedTuple):
    """A stage of a run, and the model whose weights computing it reads."""

    kind: str
    key: str
    model: str | None


@dataclass
class Plan:
    """Records the stages of a run, as if every iteration but the `empty` kept something.

    It stands in for `CachedStages` in the loop. Models and answers are their keys.
    """

    descriptions: StageDescriptions
    empty: Collection[int] = ()
    steps: list[Step] = field(default_factory=list)
    _filter: str = ""
    _n: int = 0

    def sample(self, model: str, split: Split, n: int) -> Keyed[Any]:
        return self._note("initial", self.descriptions.sampled("initial", model, split, n), model)

    def correct(self, model: str, split: Split, y1: Any, n: int) -> Keyed[Any]:
        return self._note("correction", self.descriptions.sampled("correction", model, split, n, y1=y1.key), model)

    def score(self, split: Split, y1: Any, y2: Any) -> Keyed[Pair]:
        if split.name != "train":
            return self._note("evaluation", self.descriptions.scored("evaluation", split, y1.key, y2.key), None)
        self._filter = self._note("filter", self.descriptions.scored("filter", split, y1.key, y2.key), None).key
        self._n += 1
        nothing = Answer("", 0)
        kept = [] if self._n in self.empty else [Pair(split.questions[0], 0, 0, 0, nothing, nothing, 0.0, 1.0)]
        return Keyed(self._filter, kept)

    def unusable(self, pair: Pair) -> str | None:
        return None

    def finetune(self, start: str, kept: Sequence[Pair], n: int) -> str:
        return self._note("finetune", self.descriptions.finetune(start, self._filter, n), start).key

    def _note(self, kind: str, description: Description, model: str | None) -> Keyed[Any]:
        key = digest(description)
        self.steps.append(Step(kind, key, model))
        return Keyed(key, [])
