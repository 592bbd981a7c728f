"""The workloads of the benchmark, made from this project's own settings and questions, as in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from stasc.bench.contender import Stage, Work
from stasc.cli.build import build_experiment
from stasc.cli.compose import compose
from stasc.engines.engine import Decoding, Request, complete
from stasc.models.config import load_chat, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0
from stasc.records import Answer, Pair, Question
from stasc.runs.experiment import Experiment
from stasc.runs.prepare import quieten_libraries
from stasc.stages import Stages

BATCH = 8  # examples per optimizer step, of all who train
GROWTH = (100, 200, 400, 800)  # questions
_ON_CPU = ("model.device=cpu", "tracking=off")
_PAPERS = ("sampling.n_init=5", "sampling.n_corr=5", "dataset.n_train=24")  # all questions would take an hour
_LENIENT = ("filter=lenient", "sampling.n_corr=5")
_ALL_COUNTRIES = ("dataset.min_population=0", "dataset.test_countries=1", "dataset.n_train=null")


@dataclass
class Maker:
    """Makes workloads, with one model in memory to sample what they need. `extra` are overrides for all of them."""

    extra: Sequence[str]
    gsm8k: str | None

    def __post_init__(self) -> None:
        self._live: LiveModel | None = None
        quieten_libraries()

    def makers(self) -> Mapping[str, Callable[[], Work]]:
        """Returns the function that makes each workload, by its name, in the order of the table."""
        steps = {
            "S1": lambda: self.iteration("S1", "default run, first iteration", ()),
            "S2": lambda: self.iteration("S2", "the same with n_init 5, n_corr 5, a quarter of its questions", _PAPERS),
            "L": self.long,
            "T1": lambda: self.training("T1", "pairs that strict keeps", (), passes=8),
            "T2": lambda: self.training("T2", "pairs that lenient keeps, n_corr 5", _LENIENT, passes=1),
        }
        return steps | {f"G{size}": lambda size=size: self.growth(size) for size in GROWTH}

    def iteration(self, name: str, title: str, overrides: Sequence[str]) -> Work:
        """Makes the sampling of a first iteration: initial answers, and corrections of answers sampled here."""
        stages, experiment, work = self._set_up(name, title, overrides)
        initial = stages.ask(experiment.train, 1)
        corrections = stages.ask_to_correct(experiment.train, _answers(stages, initial), 1)
        return replace(work, stages=[_stage(initial), _stage(corrections)])

    def long(self) -> Work:
        """Makes the sampling of one initial answer to each of 128 questions of GSM8K."""
        if self.gsm8k is None:
            raise LookupError("it needs --gsm8k FILE, a JSON Lines file of GSM8K with question and answer")
        path = self.gsm8k.replace("\\", "\\\\").replace("'", "\\'")
        overrides = (
            *("dataset=jsonl", f"dataset.path='{path}'", "dataset.n_train=128", "dataset.on_bad_row=skip"),
            *(r"dataset.answer_pattern='####\s*(.+)$'", "prompt=cot", "reward.scope=final"),
            *("sampling.max_new_tokens=128", "sampling.n_init=1", "sampling.n_corr=1"),
        )
        stages, experiment, work = self._set_up("L", "128 questions of GSM8K, cot prompt, 128 new tokens", overrides)
        return replace(work, stages=[_stage(stages.ask(experiment.train, 1))])

    def training(self, name: str, title: str, overrides: Sequence[str], passes: int) -> Work:
        """Makes a fine-tuning on the pairs that a first iteration keeps."""
        stages, experiment, work = self._set_up(name, title, overrides, trains=True)
        y1 = _answers(stages, stages.ask(experiment.train, 1))
        flat = _answers(stages, stages.ask_to_correct(experiment.train, y1, 1))
        n_init = experiment.sampling.n_init
        y2 = [flat[first : first + n_init] for first in range(0, len(flat), n_init)]
        pairs: list[Pair] = stages.score(experiment.train, y1, y2)
        kept = [pair for pair in pairs if experiment.keep(pair)]
        if not kept:
            raise LookupError(f"the filter kept none of {len(pairs)} pairs")
        title = f"{len(kept)} {title}" + (f", {passes} epochs" if passes > 1 else "")
        examples = [(list(example.prompt), list(example.completion)) for example in map(stages.example, kept)]
        return replace(work, title=title, examples=examples, epochs=passes)

    def growth(self, size: int) -> Work:
        """Makes the sampling of initial answers to `size` questions; time per question should not depend on it."""
        stages, experiment, work = self._set_up(f"G{size}", f"initial answers, {size} questions", _ALL_COUNTRIES)
        asked = replace(experiment.train, questions=tuple(_cycled(experiment.train.questions, size)))
        return replace(work, stages=[_stage(stages.ask(asked, 1))])

    def release(self) -> None:
        """Frees the model before contenders load theirs."""
        if self._live:
            self._live.release()

    def _set_up(
        self, name: str, title: str, overrides: Sequence[str], *, trains: bool = False
    ) -> tuple[Stages, Experiment, Work]:
        """Builds the experiment of the overrides, its stages, and a workload without stages and examples."""
        overrides = [*_ON_CPU, *overrides, *self.extra]
        experiment = build_experiment(compose(overrides))
        sampling, tune = experiment.sampling, experiment.finetune
        if self._live is None:
            device = resolve_device(experiment.model.device)
            base, resolved = experiment.model.fetch(), resolve_dtype(experiment.model.dtype, device)
            self._live = LiveModel(base, experiment.model.revision, device, resolved, four_bit=False)
        stages = Stages(
            live=self._live,
            chat=load_chat(experiment.model, self._live.base),
            engine=experiment.engine,
            prompt=experiment.prompt,
            reward=experiment.reward,
            pairing=experiment.pairing,
            target=experiment.target,
            tune=tune,
            loss=experiment.loss,
            sampling={experiment.train.name: sampling},
            batch={experiment.train.name: None},
            seed=experiment.loop.seed,
        )
        dtype = _dtype(experiment, trains=trains)
        work = Work(
            name=name,
            title=title,
            model=self._live.base,
            overrides=[*overrides, f"model.dtype={dtype}"],
            stages=[],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            stop_ids=sorted(stages.chat.stop_ids),
            examples=[],
            epochs=1,
            batch_size=BATCH,
            learning_rate=tune.learning_rate,
            max_grad_norm=tune.max_grad_norm,
            seed=experiment.loop.seed,
            dtype=dtype,
        )
        return stages, experiment, work


def _answers(stages: Stages, requests: Sequence[Request]) -> list[list[Answer]]:
    """Samples M_0's answers to each request."""
    (sampling,) = stages.sampling.values()
    decoding = Decoding(sampling.temperature, sampling.top_p, sampling.max_new_tokens, stages.chat.stop_ids)
    stages.engine.load(M_0, stages.live)
    completions = complete(stages.engine, requests, decoding)
    return [[Answer(stages.chat.decode(c.ids), len(c.ids), c.truncated) for c in answers] for answers in completions]


def _stage(requests: Sequence[Request]) -> Stage:
    return Stage([list(request.prompt) for request in requests], [list(request.keys) for request in requests])


def _dtype(experiment: Experiment, *, trains: bool) -> str:
    """Returns the dtype of all contenders: the configured one, or the fastest on this processor."""
    if experiment.model.dtype != "auto":
        return experiment.model.dtype
    has = torch.cpu.get_capabilities()
    return "bfloat16" if not trains and (has.get("avx512_bf16") or has.get("amx_bf16")) else "float32"


def _cycled(questions: Sequence[Question], size: int) -> list[Question]:
    """Returns `size` questions. Repeated ones get a longer text, so that no two prompts are equal."""
    rounds = range(-(-size // len(questions)))
    again = [replace(q, id=f"{q.id}/{n}", text="Please tell me: " * n + q.text) for n in rounds for q in questions]
    return again[:size]
