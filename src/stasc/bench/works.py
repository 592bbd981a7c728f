"""The work sets, made from this project's own settings and questions, so that they are what a run really does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hydra import compose as hydra_compose  # a benchmark is an entrypoint of its own, beside run.py
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from transformers.utils import logging as transformers_logging

from stasc.bench.contender import Stage, Work
from stasc.cli.build import build_experiment
from stasc.engines.engine import Decoding, Request
from stasc.machine.paths import CONF
from stasc.models.config import load_chat, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0
from stasc.prefix_tree.batch import Example
from stasc.records import Answer, Pair, Question
from stasc.runs.experiment import Experiment
from stasc.stages import Stages

BATCH = 8  # examples per optimizer step, of all who train
GROWTH = (100, 200, 400, 800)  # questions
_ON_CPU = ("model.device=cpu", "tracking=off")
_PAPERS = ("sampling.n_init=5", "sampling.n_corr=5", "dataset.n_train=24")  # of all questions it would take an hour
_LENIENT = ("filter=lenient", "sampling.n_corr=5")
_ALL_COUNTRIES = ("dataset.min_population=0", "dataset.test_countries=1", "dataset.n_train=null")


def compose(overrides: Sequence[str]) -> DictConfig:
    """The settings of a run with these overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides))


def quieten() -> None:
    """Progress bars of every weight that is loaded are not for those who watch a benchmark."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@dataclass
class Maker:
    """Makes works: one model in memory for all that has to be sampled on the way. `extra` are overrides for all."""

    extra: Sequence[str]
    gsm8k: str | None

    def __post_init__(self) -> None:
        self._live: LiveModel | None = None
        quieten()

    def makers(self) -> Mapping[str, Callable[[], Work]]:
        """How each work is made, by its name, in the order of the table."""
        steps = {
            "S1": lambda: self.iteration("S1", "default run, first iteration", ()),
            "S2": lambda: self.iteration("S2", "the same with n_init 5, n_corr 5, a quarter of its questions", _PAPERS),
            "L": self.long,
            "T1": lambda: self.training("T1", "pairs that strict keeps", (), passes=8),
            "T2": lambda: self.training("T2", "pairs that lenient keeps, n_corr 5", _LENIENT, passes=1),
        }
        return steps | {f"G{size}": lambda size=size: self.growth(size) for size in GROWTH}

    def iteration(self, name: str, title: str, overrides: Sequence[str]) -> Work:
        """Sampling of a first iteration: initial answers, and corrections of those that this project sampled."""
        stages, experiment = self._stages(overrides)
        initial = stages.ask(experiment.train, 1)
        corrections = stages.ask_to_correct(experiment.train, self._answers(stages, initial), 1)
        return self._sampling(name, title, overrides, experiment, stages, [initial, corrections])

    def long(self) -> Work:
        """One initial answer to each of 128 questions of GSM8K."""
        if self.gsm8k is None:
            raise LookupError("it needs --gsm8k FILE, a JSON Lines file of GSM8K with question and answer")
        path = self.gsm8k.replace("\\", "\\\\").replace("'", "\\'")
        overrides = (
            *("dataset=jsonl", f"dataset.path='{path}'", "dataset.n_train=128", "dataset.on_bad_row=skip"),
            *(r"dataset.answer_pattern='####\s*(.+)$'", "prompt=cot", "reward.scope=final"),
            *("sampling.max_new_tokens=128", "sampling.n_init=1", "sampling.n_corr=1"),
        )
        stages, experiment = self._stages(overrides)
        title = "128 questions of GSM8K, cot prompt, 128 new tokens"
        return self._sampling("L", title, overrides, experiment, stages, [stages.ask(experiment.train, 1)])

    def training(self, name: str, title: str, overrides: Sequence[str], passes: int) -> Work:
        """Fine-tuning on the pairs that a first iteration keeps."""
        stages, experiment = self._stages(overrides)
        y1 = self._answers(stages, stages.ask(experiment.train, 1))
        flat = self._answers(stages, stages.ask_to_correct(experiment.train, y1, 1))
        n_init = experiment.sampling.n_init
        y2 = [flat[first : first + n_init] for first in range(0, len(flat), n_init)]
        pairs: list[Pair] = stages.score(experiment.train, y1, y2)
        kept = [pair for pair in pairs if experiment.keep(pair)]
        if not kept:
            raise LookupError(f"the filter kept none of {len(pairs)} pairs")
        title = f"{len(kept)} {title}" + (f", {passes} epochs" if passes > 1 else "")
        work = self._sampling(name, title, overrides, experiment, stages, [])
        return replace(work, examples=[_ids(stages.example(pair)) for pair in kept], epochs=passes)

    def growth(self, size: int) -> Work:
        """Initial answers to many questions: the time per question should not depend on how many."""
        stages, experiment = self._stages(_ALL_COUNTRIES)
        asked = replace(experiment.train, questions=tuple(_cycled(experiment.train.questions, size)))
        title = f"initial answers, {size} questions"
        return self._sampling(f"G{size}", title, _ALL_COUNTRIES, experiment, stages, [stages.ask(asked, 1)])

    def release(self) -> None:
        """Frees the model, before contenders load theirs."""
        if self._live:
            self._live.release()

    def _stages(self, overrides: Sequence[str]) -> tuple[Stages, Experiment]:
        experiment = build_experiment(compose([*_ON_CPU, *overrides, *self.extra]))
        if self._live is None:
            device = resolve_device(experiment.model.device)
            dtype = resolve_dtype(experiment.model.dtype, device)
            base = experiment.model.fetch()
            self._live = LiveModel(base, experiment.model.revision, device, dtype, four_bit=False)
        name = experiment.train.name
        stages = Stages(
            live=self._live,
            chat=load_chat(experiment.model, self._live.base),
            engines={name: experiment.engine},
            prompt=experiment.prompt,
            reward=experiment.reward,
            pairing=experiment.pairing,
            target=experiment.target,
            tune=experiment.finetune,
            sampling={name: experiment.sampling},
            seed=experiment.loop.seed,
        )
        return stages, experiment

    def _answers(self, stages: Stages, requests: Sequence[Request]) -> list[list[Answer]]:
        """M_0's answers to each request."""
        (sampling,), (engine,) = stages.sampling.values(), stages.engines.values()
        decoding = Decoding(sampling.temperature, sampling.top_p, sampling.max_new_tokens, stages.chat.stop_ids)
        completions = engine(stages.live.load(M_0), requests, decoding)
        return [
            [Answer(stages.chat.decode(c.ids), len(c.ids), c.truncated) for c in answers] for answers in completions
        ]

    def _sampling(
        self,
        name: str,
        title: str,
        overrides: Sequence[str],
        experiment: Experiment,
        stages: Stages,
        requests: Sequence[Sequence[Request]],
    ) -> Work:
        sampling, tune = experiment.sampling, experiment.finetune
        dtype = _dtype(experiment, trains=not requests)
        return Work(
            name=name,
            title=title,
            model=stages.live.base,
            overrides=[*_ON_CPU, *overrides, *self.extra, f"model.dtype={dtype}"],
            stages=[Stage([list(r.prompt) for r in asked], [list(r.keys) for r in asked]) for asked in requests],
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


def _dtype(experiment: Experiment, *, trains: bool) -> str:
    """That of all contenders: what was asked for, or what the processor samples fastest in."""
    if experiment.model.dtype != "auto":
        return experiment.model.dtype
    has = torch.cpu.get_capabilities()
    return "bfloat16" if not trains and (has.get("avx512_bf16") or has.get("amx_bf16")) else "float32"


def _ids(example: Example) -> tuple[list[int], list[int]]:
    return list(example.prompt), list(example.completion)


def _cycled(questions: Sequence[Question], size: int) -> list[Question]:
    """So many questions: where they run out they come again, with other words so that no prompt is there twice."""
    rounds = range(-(-size // len(questions)))
    again = [replace(q, id=f"{q.id}/{n}", text="Please tell me: " * n + q.text) for n in rounds for q in questions]
    return again[:size]
