"""Sampling noise that belongs to the question, not to the batch.

Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
The key names the draw, (seed, split, stage, iteration, question, sample); the counter is the token's position and id.
So a draw does not depend on batch, order or process, and two models sample a question with the same noise.

Shapes: B rows, K candidate tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def noise_key(*parts: str | int) -> int:
    """Returns the Philox key of a draw: a hash of the parts that name it, 63 bits so that it fits int64."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Returns four random 32-bit words per counter and key, by Philox4x32-10.

    All tensors are int64, hold 32-bit words and broadcast against each other. Products wrap around modulo 2^64 as
    unsigned ones do, so their upper word is right once the sign is masked off.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(_ROUNDS):
        if round_:
            k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
    return c0, c1, c2, c3


def gumbel(keys_B: Tensor, position: int, ids_BK: Tensor) -> Tensor:
    """Returns standard Gumbel noise for the tokens `ids_BK` at a position of the answer, float64 (B, K)."""
    words = _words(keys_B, position, ids_BK >> 2)
    return _to_gumbel(torch.stack(words, dim=-1).gather(-1, (ids_BK & 3).unsqueeze(-1)).squeeze(-1))


def gumbel_all(keys_B: Tensor, position: int, vocab_size: int) -> Tensor:
    """Returns `gumbel` for every token of the vocabulary, float64 (B, V), at a quarter of its cost."""
    blocks = torch.arange((vocab_size + 3) // 4, device=keys_B.device).unsqueeze(0)
    return _to_gumbel(torch.stack(_words(keys_B, position, blocks), dim=-1).flatten(1)[:, :vocab_size])


def _words(keys_B: Tensor, position: int, blocks_BK: Tensor) -> tuple[Tensor, ...]:
    key = (keys_B.unsqueeze(1) & _WORD, keys_B.unsqueeze(1) >> 32)
    zero = torch.zeros_like(blocks_BK)
    return philox((blocks_BK, zero + position, zero, zero), key)


def _to_gumbel(words: Tensor) -> Tensor:
    return -torch.log(-torch.log((words.double() + 0.5) * 2.0**-32))
