"""Sampling with a transformers model, on the CPU and on CUDA alike.

Prompts are sorted by length and sampled in batches. Noise comes from `noise.py`, so a batch decides no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stasc.engines.engine import Completion, Decoding, Request, Row
from stasc.errors import NonFiniteError
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.engines.hf.memory import Limit
    from stasc.models.lengths import Lengths
    from stasc.models.model import Network


class Counted:
    """Tells of progress, and can take it back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.rows = advance, 0

    def __call__(self, k: int = 1, /) -> None:
        self.rows += k
        self.advance(k)

    def back(self) -> None:
        self.advance(-self.rows)


@dataclass(frozen=True)
class _Begun:
    """An answer of which some tokens `ids` were drawn, that are now a part of its `prompt`.

    `kind` is what answers must have in common that are sampled together: the kind of their lengths, how many more
    tokens they can draw before the model has to compute all of them anew, and how many they have.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    key: int
    name: str
    kind: tuple[int, int, int]

    @classmethod
    def of(
        cls, requests: Sequence[Request], row: Row, ids: tuple[int, ...], decoding: Decoding, alike: Lengths
    ) -> _Begun:
        request, sample = requests[row[0]], row[1]
        prompt = request.prompt + ids
        room = alike.room(len(prompt), decoding.max_new_tokens - len(ids))
        name = request.name or f"request {row[0]}"
        return cls(prompt, ids, request.keys[sample], name, (alike.kind(len(prompt)), room, len(ids)))


@dataclass(frozen=True)
class HF:
    """The engine of transformers.

    At most `batch_size` rows are sampled together, and `prefill_tokens` tokens of prompts computed at once. `compiled`
    has torch compile parts of layers.
    """

    batch_size: int
    prefill_tokens: int = 768
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"engine.batch_size={self.batch_size}: expected at least 1")
        if self.prefill_tokens < 1:
            raise ValueError(f"engine.prefill_tokens={self.prefill_tokens}: expected at least 1")

    def __call__(
        self,
        model: Network,
        requests: Sequence[Request],
        decoding: Decoding,
        advance: Advance = lambda k=1: None,
    ) -> list[list[Completion]]:
        """Completions of each request, one per key, in order. `advance` is told how many rows have ended.

        Raises: ValueError if a prompt and its answer do not fit into the model's context.
        """
        completions: dict[Row, Completion] = {}
        for batch in self.batches(requests):
            completions |= zip(batch, self.sample(model, requests, batch, decoding, advance), strict=True)
        return [[completions[r, s] for s in range(len(request.keys))] for r, request in enumerate(requests)]

    def batches(self, requests: Sequence[Request]) -> list[list[Row]]:
        """The rows of each batch, of like size; requests of like length, and those of one prompt, stand together."""
        order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
        rows = [(r, sample) for r in order for sample in range(len(requests[r].keys))]
        if not rows:
            return []
        size = math.ceil(len(rows) / math.ceil(len(rows) / self.batch_size))
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def sample(
        self,
        model: Network,
        requests: Sequence[Request],
        batch: Sequence[Row],
        decoding: Decoding,
        advance: Advance = lambda k=1, /: None,
        limit: Limit | None = None,
    ) -> list[Completion]:
        """The completion of each row of a batch, as many at once as memory allows.

        Raises: ValueError if a prompt and its answer do not fit into the model's context, or not into memory, or if
            torch cannot compile the model; NonFiniteError if the model's logits are not finite.
        """
        import torch

        from stasc.engines.hf import prefill
        from stasc.engines.hf.memory import Limit
        from stasc.models import lengths

        check_context(model, requests, decoding)
        limit, found = limit or Limit(), [Completion((), truncated=True) for _ in batch]
        model.eval()
        with torch.inference_mode():
            longest = max((len(requests[request].prompt) for request, _ in batch), default=0)
            alike = prefill.lengths_of(model, longest + decoding.max_new_tokens) if batch else lengths.Lengths()
            going = list(range(len(batch)))
            with self._compiling(model):
                while going:
                    begun = [_Begun.of(requests, batch[row], found[row].ids, decoding, alike) for row in going]
                    for group in lengths.grouped([row.kind for row in begun]):
                        some = [begun[index] for index in group]
                        completions = self._sample(model, some, decoding, advance, limit)
                        for index, completion in zip(group, completions, strict=True):
                            found[going[index]] = completion
                    going = [
                        row for row in going if found[row].truncated and len(found[row].ids) < decoding.max_new_tokens
                    ]
                    if going:
                        advance(-len(going))  # they were counted as ended
        return found

    def _sample(
        self, model: Network, some: Sequence[_Begun], decoding: Decoding, advance: Advance, limit: Limit
    ) -> list[Completion]:
        """Goes on with answers of one kind, until they end or have to be computed anew."""
        from stasc.engines.hf import decode
        from stasc.machine.memory import ran_out
        from stasc.models import lengths

        prompts, keys, ids = zip(*((row.prompt, row.key, row.ids) for row in some), strict=True)
        room = some[0].kind[1]
        decoding, done = replace(decoding, max_new_tokens=room), list[Completion]()
        rows = limit.of(model, prompts, room)
        while len(done) < len(some):
            part = slice(len(done), len(done) + rows)
            size = len(prompts[part])
            told = Counted(advance)
            try:
                with lengths.beyond(model, min(map(len, prompts))):
                    done += decode.sample_batch(
                        model, prompts[part], keys[part], decoding, told, self.prefill_tokens, ids[part]
                    )
                continue
            except decode.NonFiniteLogits as error:
                names = list(dict.fromkeys(some[len(done) + row].name for row in error.rows))
                raise NonFiniteError(
                    f"the logits are not finite: {', '.join(names[:3])}"
                    + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                ) from error
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if size == 1:
                    raise ValueError(
                        f"a prompt of {len(prompts[len(done)])} tokens and its answer do not fit into the memory "
                        f"of {model.device}: lower sampling.max_new_tokens, set model.dtype=bfloat16, or take a "
                        "smaller model"
                    ) from error
            told.back()  # here, where the error no longer holds what was computed
            rows = limit.lower(size // 2)
        return done

    def _compiling(self, model: Network) -> AbstractContextManager[None]:
        if not self.compiled:
            return nullcontext()
        from stasc.engines.hf import compiled

        return compiled.layers(model)


def check_context(model: Network, requests: Sequence[Request], decoding: Decoding) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(request.prompt) for request in requests), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={decoding.max_new_tokens} exceed the model's "
            f"context of {limit} tokens; lower sampling.max_new_tokens or drop the long question"
        )
