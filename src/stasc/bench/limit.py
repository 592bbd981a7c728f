"""The machine's limit as a contender: measures matrix products of the model's own shapes."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from stasc.bench.contender import Done, Work, serve
from stasc.machine import processor

ROWS = 512
PASSES = 5  # timed passes; their median counts


class Limit:
    """Contender that multiplies ROWS rows by every matrix of the model, once a pass."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        processor.prepare(torch.device("cpu"))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(work.model, trust_remote_code=False), trust_remote_code=False
            )
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        self.head = Counter([tuple(head.weight.shape)])
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        self.layers = Counter(tuple(module.weight.shape) for module in linear)
        self.dtype = getattr(torch, work.dtype)
        self.setting = f"{ROWS} rows, {work.dtype}"
        self.versions = {"torch": str(torch.__version__)}

    @torch.inference_mode()
    def run(self, work: Work) -> Done:
        """Measures the products; the work's prompts and examples do not matter."""
        rates: dict[str, float] = {}
        for name, shapes in (("layers", self.layers), ("head", self.head)):
            parameters = sum(times * rows * columns for (rows, columns), times in shapes.items())
            seconds = statistics.median(self._pass(shapes) for _ in range(PASSES))
            rates |= {f"{name}_parameters": parameters, f"{name}_flops_per_s": 2 * ROWS * parameters / seconds}
        return Done(rates=rates)

    def _pass(self, shapes: Counter[tuple[int, ...]]) -> float:
        """Returns the seconds of one product with each matrix of these shapes."""
        seconds = 0.0
        for shape, times in shapes.items():
            weight, rows = torch.randn(shape, dtype=self.dtype), torch.randn(ROWS, shape[1], dtype=self.dtype)
            functional.linear(rows, weight)
            began = time.perf_counter()
            for _ in range(times):
                functional.linear(rows, weight)
            seconds += time.perf_counter() - began
        return seconds


if __name__ == "__main__":
    serve(Limit)
