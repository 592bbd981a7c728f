"""vLLM on the CPU as a contender. Runs in its own environment, without this project's packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stasc.bench.contender import Done, Work, serve, useful

# The fastest settings found on a CPU with AVX-512 BF16, by CPU time on one thread. In tokens/s, bfloat16 is 1.6 times
# float32, compiled 1.04 times eager, Intel's OpenMP 1.05 times the compiler's; 256 sequences at once equal 128.
BEST = {
    "enforce_eager": "false",
    "max_num_seqs": "256",
    "executor": "uni",
    "engine_process": "false",
    "kvcache_gib": "2",
}


class VLLM:
    """Contender with `n` samples per prompt and prefix caching."""

    def __init__(self, work: Work, options: Mapping[str, str]) -> None:
        chosen = {**BEST, "dtype": work.dtype, **options}
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = chosen["kvcache_gib"]
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(chosen["engine_process"] == "true"))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # "auto" leaves a core idle
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        import torch
        import transformers
        import vllm  # type: ignore[import-not-found]

        longest = max(len(prompt) for stage in work.stages for prompt in stage.prompts)
        self.params: Any = vllm.SamplingParams
        self.model: Any = vllm.LLM(
            model=work.model,
            dtype=chosen["dtype"],
            enforce_eager=chosen["enforce_eager"] == "true",
            max_num_seqs=int(chosen["max_num_seqs"]),
            max_model_len=longest + work.max_new_tokens,
            distributed_executor_backend=chosen["executor"],
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            seed=0,
        )
        self.setting = ", ".join(f"{name} {value}" for name, value in chosen.items())
        self.versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}

    def run(self, work: Work) -> Done:
        """Samples from all prompts of a stage at once, scheduled by the engine, after resetting its prefix cache."""
        self.model.reset_prefix_cache()
        lengths = []
        for stage in work.stages:
            params = [
                self.params(
                    n=len(keys),
                    temperature=work.temperature,
                    top_p=work.top_p,
                    top_k=0,
                    max_tokens=work.max_new_tokens,
                    stop_token_ids=work.stop_ids,
                    ignore_eos=True,
                    detokenize=False,
                )
                for keys in stage.keys
            ]
            outputs = self.model.generate(
                [{"prompt_token_ids": prompt} for prompt in stage.prompts], params, use_tqdm=False
            )
            lengths += [useful(answer.token_ids, work.stop_ids) for out in outputs for answer in out.outputs]
        return Done(lengths)


if __name__ == "__main__":
    serve(VLLM)
