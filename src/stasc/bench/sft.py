"""`trl.SFTTrainer` as a contender. Runs in its own environment, without this project's packages."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping

from stasc.bench.contender import Done, Work, serve
from stasc.machine import processor

# On the CPU, padding-free gives the same loss in 1.04 times the CPU time of padded batches of similar prompts. Packing
# would change the examples of a step.
BEST = {"padding_free": "false", "optim": "adamw_torch_fused", "onednn": "false"}


class SFT:
    """Contender that trains on completions only, with the same examples per step as all contenders."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        import datasets  # type: ignore[import-untyped]
        import torch
        import transformers
        import trl  # type: ignore[import-not-found]
        from transformers import AutoModelForCausalLM, AutoTokenizer

        datasets.disable_progress_bars()
        transformers.logging.set_verbosity_error()
        self.chosen = {**BEST, **options}
        if self.chosen["onednn"] == "true":
            processor.multiply_by_onednn(True)
        self.trl, self.datasets = trl, datasets
        self.tokenizer = AutoTokenizer.from_pretrained(work.model, trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(work.model, trust_remote_code=False, dtype=torch.float32)
        self.setting = ", ".join(f"{name} {value}" for name, value in self.chosen.items()) + ", float32"
        self.versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}

    def run(self, work: Work) -> Done:
        """Fine-tunes once; counts the seconds of `SFTTrainer.train` alone, without the preparation of the data."""
        rows = {
            "input_ids": [[*prompt, *completion] for prompt, completion in work.examples],
            "completion_mask": [[0] * len(prompt) + [1] * len(completion) for prompt, completion in work.examples],
        }
        with tempfile.TemporaryDirectory() as scratch:
            config = self.trl.SFTConfig(
                output_dir=scratch,
                seed=work.seed,
                num_train_epochs=work.epochs,
                per_device_train_batch_size=work.batch_size,
                learning_rate=work.learning_rate,
                lr_scheduler_type="constant",
                max_grad_norm=work.max_grad_norm,
                optim=self.chosen["optim"],
                completion_only_loss=True,
                packing=False,
                padding_free=self.chosen["padding_free"] == "true",
                max_length=None,
                activation_checkpointing=False,
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = self.trl.SFTTrainer(
                model=self.model,
                args=config,
                train_dataset=self.datasets.Dataset.from_dict(rows),
                processing_class=self.tokenizer,
            )
            began = time.perf_counter()
            result = trainer.train()
            seconds = time.perf_counter() - began
        return Done(loss=result.training_loss, seconds=seconds)


if __name__ == "__main__":
    serve(SFT)
