"""This project as a contender, through its public functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stasc.bench.contender import Done, Work, serve, useful
from stasc.bench.works import compose, quieten
from stasc.cli.parts import build
from stasc.engines.engine import Completion, Decoding, Request
from stasc.engines.hf.engine import HF
from stasc.machine import provenance
from stasc.models.config import ModelConfig, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0
from stasc.prefix_tree.batch import Example
from stasc.prefix_tree.trie import Trie
from stasc.training.methods import Optimization


class Ours:
    """The engine and the fine-tuning of the work's own settings."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        quieten()
        cfg = compose([*work.overrides, *(f"{name}={value}" for name, value in options.items())])
        config: ModelConfig = build(cfg, "model")
        self.engine: HF = build(cfg, "engine")
        self.tune: Optimization = build(cfg, "finetune")
        device = resolve_device(config.device)
        dtype, attention = resolve_dtype(config.dtype, device), config.attention
        self.live = LiveModel(work.model, config.revision, device, dtype, four_bit=False, attention=attention)
        self.live.load(M_0, self.live.training_dtype if work.trains else None)
        settings = {**cfg.finetune, "batch_size": work.batch_size} if work.trains else dict(cfg.engine)
        shown = ("batch_size", "packing", "shuffle", "optimizer") if work.trains else settings
        told = [f"{name} {settings[name]}" for name in shown if name in settings and name != "_target_"]
        self.setting = ", ".join([*told, str(self.live.dtype).removeprefix("torch.")])
        self.versions = {name: v for name, v in provenance.versions().items() if name in ("torch", "transformers")}

    def run(self, work: Work) -> Done:
        """Answers of all prompts, or one fine-tuning, of the weights as the last one left them."""
        return self._train(work) if work.trains else self._sample(work)

    def _sample(self, work: Work) -> Done:
        decoding = Decoding(work.temperature, work.top_p, work.max_new_tokens, frozenset(work.stop_ids))
        done = Done()
        for stage in work.stages:
            requests = [
                Request(tuple(prompt), tuple(keys)) for prompt, keys in zip(stage.prompts, stage.keys, strict=True)
            ]
            completions = self.engine(self.live.load(M_0), requests, decoding)
            done.lengths.extend(useful(answer.ids, work.stop_ids) for answers in completions for answer in answers)
            done.followed.append(_followed(requests, completions))
        return done

    def _train(self, work: Work) -> Done:
        from stasc.training import trainer  # sampling does without, and without the memory of what it imports

        settings = replace(
            self.tune,
            learning_rate=work.learning_rate,
            epochs=work.epochs,
            batch_size=work.batch_size,
            max_grad_norm=work.max_grad_norm,
        )
        rows = [Example(str(row), tuple(prompt), tuple(answer)) for row, (prompt, answer) in enumerate(work.examples)]
        network = self.live.load(M_0, self.live.training_dtype)
        training = trainer.train(network, rows, settings, self.live, work.seed, lambda k=1: None)
        return Done(loss=training.loss)


def _followed(requests: Sequence[Request], completions: Sequence[Sequence[Completion]]) -> int:
    begun = defaultdict[tuple[int, ...], Trie](Trie)
    for request, answers in zip(requests, completions, strict=True):
        for answer in answers:
            begun[request.prompt].add(answer.ids[:-1])
    return sum(map(len, begun.values()))


if __name__ == "__main__":
    serve(Ours)
