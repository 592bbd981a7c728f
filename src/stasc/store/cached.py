"""The stages of Algorithm 1 with a cache around them: a stage that is in the store is read, not computed.

The loop calls these methods and does not know of the store. `Plan` has the same methods, which only derive keys, so
that the stages of a run are known before it starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from stasc.choices.filter import Filter
from stasc.engines.engine import Request, SampleIndex
from stasc.errors import NonFiniteError
from stasc.machine import durable
from stasc.machine.sealed import digest, jsonl
from stasc.models.model import Model
from stasc.records import NOT_ASKED, Advance, Answer, Keyed, OptimizerStep, Pair, Split
from stasc.stages import Stages
from stasc.store.artifacts import TIMES, Artifact, InputsChanged, Store
from stasc.store.keys import Description, StageDescriptions
from stasc.tasks.rewards import ZeroOnError
from stasc.tracking import redact
from stasc.tracking.answer_warnings import AnswerWarnings

log = logging.getLogger(__name__)

T = TypeVar("T")
INPUTS = ("model", "start", "y1", "y2", "pairs")  # the names in descriptions that hold the keys of other stages
ERRORS = "errors.json"  # beside pairs.jsonl: the errors of a reward, for which answers counted 0
LABELS = {"initial": "initial answers", "correction": "corrections"}
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]  # takes a stage's label, total and unit
OnStep = Callable[[int, int, OptimizerStep], None]  # takes n, the number of the step from 1 on, and its figures


class CachedStages:
    """The stages of a run, each read from the store or computed into it.

    Weights may be evicted or damaged while the stages computed from them are in the store. They are derived again when
    a stage has to be computed with them. `training` holds the figures of fine-tunings, by iteration. `on_step` is
    called for each optimizer step when it is computed, and again when the fine-tuning is read from the store.
    """

    def __init__(
        self,
        stages: Stages,
        store: Store,
        descriptions: StageDescriptions,
        keep: Filter,
        progress: Progress,
        on_step: OnStep = lambda n, number, step: None,
    ) -> None:
        self.training: dict[int, Mapping[str, float]] = {}
        self.unusable = stages.unusable
        self._stages, self._store, self._descriptions, self._keep = stages, store, descriptions, keep
        self._progress, self._on_step = progress, on_step
        self._pairs: Keyed[Pair] = Keyed("", [])  # training pairs of the last scoring
        self._content: dict[str, str] = {}  # digests of the artifacts read, by key
        self._weights: dict[str, Callable[[], None]] = {}  # by model: checks its weights, or derives missing ones again
        self._made: dict[str, int] = {}  # the iteration that trained a model, by key
        self._n = 0  # the current iteration
        self._answer_warnings = AnswerWarnings()
        stages.live.before_read = lambda model: self._weights[model.key]()

    def sample(self, model: Model, split: Split, n: int) -> Keyed[list[Answer]]:
        """Returns the initial answers, y1[question][i]."""
        self._n = max(self._n, n)  # an evaluation samples with the noise of iteration 0
        description = self._descriptions.sampled("initial", model.key, split, n)
        key, rows = self._sampled("initial", description, model, split, partial(self._stages.ask, split, n))
        n_init = self._stages.sampling[split.name].n_init
        return Keyed(key, [[rows[q, i] for i in range(n_init)] for q in range(len(split.questions))])

    def correct(self, model: Model, split: Split, y1: Keyed[list[Answer]], n: int) -> Keyed[list[list[Answer]]]:
        """Returns the corrections, y2[question][i][k]."""
        self._n = max(self._n, n)
        description = self._descriptions.sampled("correction", model.key, split, n, y1=y1.key)
        ask = partial(self._stages.ask_to_correct, split, y1, n)
        key, rows = self._sampled("correction", description, model, split, ask)
        request = count()
        n_corr = range(self._stages.sampling[split.name].n_corr)
        seen = [[next(request) for _ in answers] for answers in y1]  # the request of each initial answer
        not_asked = [
            f"question {question.id}, initial answer {i}"
            for question, requests in zip(split.questions, seen, strict=True)
            for i, r in enumerate(requests)
            if rows[r, 0] == NOT_ASKED
        ]
        self._answer_warnings.not_asked(_label("correction", split), not_asked)
        return Keyed(key, [[[rows[r, k] for k in n_corr] for r in requests] for requests in seen])

    def score(self, split: Split, y1: Keyed[list[Answer]], y2: Keyed[list[list[Answer]]]) -> Keyed[Pair]:
        """Returns the pairs with their rewards. The artifact of the training split holds the filter's verdicts too."""
        training = split.name == "train"
        stage = "filter" if training else "evaluation"
        description = self._descriptions.scored(stage, split, y1.key, y2.key)

        def compute(work: Path) -> None:
            scored = self._stages.score(split, y1, y2)
            reward = self._stages.reward
            (work / ERRORS).unlink(missing_ok=True)  # left by an interrupted try
            if isinstance(reward, ZeroOnError) and (errors := reward.pop_errors()):
                durable.write(work / ERRORS, json.dumps(errors).encode())
            lines = [{**pair.names, "r1": pair.r1, "r2": pair.r2} for pair in scored]
            if training:
                lines = [{**line, "kept": bool(self._keep(pair))} for line, pair in zip(lines, scored, strict=True)]
            durable.write(work / "pairs.jsonl", jsonl(lines))

        def read(artifact: Artifact) -> list[Pair]:
            if ERRORS in artifact.files:
                artifact.read(ERRORS)
            index = {question.id: q for q, question in enumerate(split.questions)}
            pairs = []
            for line in map(json.loads, artifact.read("pairs.jsonl").splitlines()):
                q, i, seen, k = index[line["question"]], line["i"], line["seen"], line["k"]
                pairs.append(Pair(split.questions[q], i, seen, k, y1[q][i], y2[q][seen][k], line["r1"], line["r2"]))
            return pairs

        key, pairs = self._derive(stage, description, compute, read)
        if training:
            self._pairs = Keyed(key, pairs)
        return Keyed(key, pairs)

    def finetune(self, start: Model, kept: Sequence[Pair], n: int) -> Model:
        """Returns M_n: `start` trained on the kept corrections."""
        assert kept == [pair for pair in self._pairs if self._keep(pair) and not self.unusable(pair)]
        description = self._descriptions.finetune(start.key, self._pairs.key, n)
        key = digest(description)
        made = replace(self._stages.tune.model(start, self._store.root / "model" / key / "weights"), key=key)
        inputs = partial(self._inputs, description)

        def train(work: Path) -> None:
            self._require_weights(start, description)
            self._train(start, kept, n, made, work)

        def derive_weights(read: Callable[[Artifact], T]) -> tuple[Artifact, T]:
            return self._store.derive("model", key, redact(description), inputs, train, read)

        def compute(work: Path) -> None:
            artifact, training = derive_weights(_read_training)
            _write_training(work, {**training, "weights": artifact.content})

        def derive_training() -> dict[str, Any]:
            return self._derive("finetune", description, compute, _read_training)[1]

        def restore() -> None:
            artifact, _ = derive_weights(Artifact.verify)
            if artifact.content != recorded["weights"]:
                log.warning(
                    "the weights of M_%d were derived again and differ from before, as on another machine: later "
                    "stages are computed again, but earlier results of this run stay; "
                    "for a run from one machine, remove its folder and give the command again",
                    n,
                )
                self._store.remove("finetune", key)
                recorded.update(derive_training())

        recorded = derive_training()
        self._made[key] = n
        for number, step in enumerate(recorded["history"], start=1):
            self._on_step(n, number, OptimizerStep(**step))
        self.training[n] = {name: value for name, value in recorded.items() if name not in ("weights", "history")}
        self._weights[key] = restore
        return made

    def _train(self, start: Model, kept: Sequence[Pair], n: int, made: Model, work: Path) -> None:
        """Fine-tunes `start` into a folder of the store. The network in memory is then that of `made`."""
        shutil.rmtree(work / "weights", ignore_errors=True)  # left by an interrupted try
        steps: list[OptimizerStep] = []
        with self._progress("fine-tuning", self._stages.steps(kept), "steps") as advance:

            def on_step(step: OptimizerStep) -> None:
                steps.append(step)
                self._on_step(n, len(steps), step)
                advance()

            model, training = self._stages.finetune(start, kept, n, work / "weights", on_step)
        self._stages.live.renamed(model, made)
        _write_training(work, {**asdict(training), "history": [asdict(step) for step in steps]})

    def _require_weights(self, model: Model, description: Description) -> None:
        """Makes sure that a model's weights are in the store. Raises: InputsChanged if they were derived otherwise."""
        before = self._inputs(description)
        if model.key in self._weights and not self._stages.live.holds(model):
            self._weights[model.key]()
        if self._inputs(description) != before:
            raise InputsChanged

    def _inputs(self, description: Description) -> dict[str, str]:
        """Returns the digests of a stage's inputs. M_0's key is the digest of its content."""
        keys = {name: description[name] for name in INPUTS if name in description}
        return {name: self._content.get(key, key) for name, key in keys.items()}

    def _sampled(
        self, kind: str, description: Description, model: Model, split: Split, ask: Callable[[], list[Request]]
    ) -> tuple[str, dict[SampleIndex, Answer]]:
        """Returns the answers of a sampling stage by (request, sample). They are committed batch by batch."""
        label = _label(kind, split)

        def compute(work: Path) -> None:
            self._require_weights(model, description)
            requests = ask()
            not_asked = [r for r, request in enumerate(requests) if not request.keys]
            if not_asked:
                samples = range(self._stages.sampling[split.name].n_corr)  # an initial answer is always asked for
                _write_answers(work, "not_asked", [((r, s), NOT_ASKED) for r in not_asked for s in samples])
            total = sum(len(request.keys) for request in requests)
            with self._progress(label, total, "answers") as advance:
                for number, batch in enumerate(self._stages.batches(split, requests)):
                    if _whole_chunk(work, number):
                        advance(len(batch))
                        continue
                    with self._naming(model, split):
                        answers = self._stages.answer(model, split, requests, batch, advance)
                    _write_answers(work, f"{number:05d}", zip(batch, answers, strict=True))

        def read(artifact: Artifact) -> dict[SampleIndex, Answer]:
            rows: dict[SampleIndex, Answer] = {}
            for name in sorted(artifact.files):
                for line in map(json.loads, artifact.read(name).splitlines()):
                    row = (line.pop("request"), line.pop("sample"))
                    rows[row] = Answer(**{**line, "ids": tuple(line["ids"])})
            return rows

        key, rows = self._derive(kind, description, compute, read)
        self._answer_warnings(label, rows.values())
        return key, rows

    @contextmanager
    def _naming(self, model: Model, split: Split) -> Iterator[None]:
        """Puts the model's name, the iteration and the split before an error of non-finite logits."""
        try:
            yield
        except NonFiniteError as error:
            name = self._made.get(model.key, 0)
            advice = "use another model, or model.dtype=float32"
            if name:
                advice = "its weights are out of range: lower finetune.learning_rate, or use model.dtype=float32"
            raise NonFiniteError(f"M_{name} in iteration {self._n}, {split.name} split: {error}; {advice}") from error

    def _derive(
        self, kind: str, description: Description, compute: Callable[[Path], None], read: Callable[[Artifact], T]
    ) -> tuple[str, T]:
        key = digest(description)
        artifact, value = self._store.derive(
            kind, key, redact(description), partial(self._inputs, description), compute, read
        )
        self._content[key] = artifact.content
        return key, value


def _write_training(work: Path, training: Mapping[str, Any]) -> None:
    """Writes the figures of a fine-tuning and of its steps; step times go to a file of their own."""
    steps = [{name: value for name, value in step.items() if name != "seconds"} for step in training["history"]]
    durable.write(work / "training.json", json.dumps({**training, "history": steps}).encode())
    durable.write(work / TIMES, json.dumps([step["seconds"] for step in training["history"]]).encode())


def _read_training(artifact: Artifact) -> dict[str, Any]:
    """Returns what `_write_training` wrote."""
    training = json.loads(artifact.read("training.json"))
    seconds = json.loads(artifact.read(TIMES))
    steps = [{**step, "seconds": s} for step, s in zip(training["history"], seconds, strict=True)]
    return {**training, "history": steps}


def _label(kind: str, split: Split) -> str:
    return LABELS[kind] if split.name == "train" else f"{split.name} {LABELS[kind]}"


def _whole_chunk(work: Path, number: int) -> bool:
    """Whether a batch was sampled before an interruption. Removes damaged chunks of it."""
    for path in work.glob(f"{number:05d}-*.jsonl"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem.partition("-")[2]:
            return True
        path.unlink()
    return False


def _write_answers(work: Path, name: str, answers: Iterable[tuple[SampleIndex, Answer]]) -> None:
    data = jsonl({"request": r, "sample": s, **vars(answer)} for (r, s), answer in answers)
    durable.write(work / f"{name}-{hashlib.sha256(data).hexdigest()}.jsonl", data)
