"""`transformers.generate` as a contender, in this project's own environment."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from stasc.bench.contender import Done, Stage, Work, serve, useful

BEST = {"batch": "64"}


class Generate:
    """Contender that batches prompts of similar length, left-padded, with all samples of a prompt in one batch."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        chosen = {**BEST, "dtype": work.dtype, **options}
        transformers.logging.set_verbosity_error()
        self.work, self.batch = work, int(chosen["batch"])
        self.model = AutoModelForCausalLM.from_pretrained(
            work.model, trust_remote_code=False, dtype=getattr(torch, chosen["dtype"])
        ).eval()
        self.setting = ", ".join(f"{name} {value}" for name, value in chosen.items())
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        torch.manual_seed(work.seed)

    @torch.inference_mode()
    def run(self, work: Work) -> Done:
        """Samples from all prompts."""
        return Done([n for stage in work.stages for batch in self._batches(stage) for n in self._lengths(*batch)])

    def _batches(self, stage: Stage) -> list[tuple[list[list[int]], int]]:
        """Returns batches of at most `batch` samples, or of one prompt, each with its number of samples per prompt."""
        order = sorted(range(len(stage.prompts)), key=lambda p: (len(stage.keys[p]), len(stage.prompts[p])))
        batches = []
        for samples, prompts in itertools.groupby(order, key=lambda p: len(stage.keys[p])):
            alike = [stage.prompts[p] for p in prompts]
            size = max(1, self.batch // samples)
            batches += [(alike[first : first + size], samples) for first in range(0, len(alike), size)]
        return batches

    def _lengths(self, prompts: list[list[int]], samples: int) -> list[int]:
        work = self.work
        width = max(map(len, prompts))
        pad = [[0] * (width - len(prompt)) for prompt in prompts]
        config = GenerationConfig(
            do_sample=work.temperature > 0,
            temperature=work.temperature or None,
            top_p=work.top_p,
            top_k=0,
            max_new_tokens=work.max_new_tokens,
            eos_token_id=work.stop_ids,
            pad_token_id=work.stop_ids[0],
            num_return_sequences=samples,
        )
        ids = self.model.generate(
            input_ids=torch.tensor([p + prompt for p, prompt in zip(pad, prompts, strict=True)]),
            attention_mask=torch.tensor([p + [1] * len(prompt) for p, prompt in zip(pad, prompts, strict=True)]),
            generation_config=config,
        )
        return [useful(row, work.stop_ids) for row in ids[:, width:].tolist()]


if __name__ == "__main__":
    serve(Generate)
