"""This project as a contender of the benchmark, through its public interfaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stasc.bench.contender import Done, Work, serve, useful
from stasc.cli.compose import compose
from stasc.cli.parts import build
from stasc.engines.engine import Completion, Decoding, Engine, Request, complete
from stasc.machine import provenance
from stasc.models.config import ModelConfig, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0
from stasc.prefix_tree.batch import Example
from stasc.prefix_tree.trie import Trie
from stasc.runs.prepare import quieten_libraries
from stasc.training.losses import Loss
from stasc.training.methods import Method


class Ours:
    """Samples and fine-tunes with the workload's own settings."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        quieten_libraries()
        cfg = compose([*work.overrides, *(f"{name}={value}" for name, value in options.items())])
        config: ModelConfig = build(cfg, "model")
        self.engine: Engine = build(cfg, "engine")
        self.tune: Method = build(cfg, "finetune")
        self.loss: Loss = build(cfg, "loss")
        device = resolve_device(config.device)
        dtype, attention = resolve_dtype(config.dtype, device), config.attention
        self.live = LiveModel(work.model, config.revision, device, dtype, four_bit=False, attention=attention)
        if work.trains:
            self.live.load(M_0, self.live.training_dtype)
        else:
            self.engine.load(M_0, self.live)
        settings = {**cfg.finetune, "batch_size": work.batch_size} if work.trains else dict(cfg.engine)
        shown = ("batch_size", "packing", "shuffle", "optimizer") if work.trains else settings
        named = [f"{name} {settings[name]}" for name in shown if name in settings and name != "_target_"]
        self.setting = ", ".join([*named, str(self.live.dtype).removeprefix("torch.")])
        self.versions = {name: v for name, v in provenance.versions().items() if name in ("torch", "transformers")}

    def run(self, work: Work) -> Done:
        """Samples all prompts, or fine-tunes once, from the weights as the last call left them."""
        return self._train(work) if work.trains else self._sample(work)

    def _sample(self, work: Work) -> Done:
        decoding = Decoding(work.temperature, work.top_p, work.max_new_tokens, frozenset(work.stop_ids))
        done = Done()
        for stage in work.stages:
            requests = [
                Request(tuple(prompt), tuple(keys)) for prompt, keys in zip(stage.prompts, stage.keys, strict=True)
            ]
            completions = complete(self.engine, requests, decoding)
            done.lengths.extend(useful(answer.ids, work.stop_ids) for answers in completions for answer in answers)
            done.followed.append(_followed(requests, completions))
        return done

    def _train(self, work: Work) -> Done:
        from stasc.training import loop  # imported here, as sampling needs neither it nor its memory

        settings = replace(
            self.tune,
            learning_rate=work.learning_rate,
            epochs=work.epochs,
            batch_size=work.batch_size,
            max_grad_norm=work.max_grad_norm,
        )
        rows = [Example(str(row), tuple(prompt), tuple(answer)) for row, (prompt, answer) in enumerate(work.examples)]
        network = self.live.load(M_0, self.live.training_dtype)
        training = loop.train(network, rows, settings, self.loss, self.live, work.seed, lambda step: None)
        return Done(loss=training.loss)


def _followed(requests: Sequence[Request], completions: Sequence[Sequence[Completion]]) -> int:
    """Returns the number of distinct answer prefixes, each of which takes one token of a forward pass."""
    tries = defaultdict[tuple[int, ...], Trie](Trie)
    for request, answers in zip(requests, completions, strict=True):
        for answer in answers:
            tries[request.prompt].add(answer.ids[:-1])
    return sum(map(len, tries.values()))


if __name__ == "__main__":
    serve(Ours)
