"""Sampling noise: Philox4x32-10 against published values, Gumbel's distribution, and dependence on the key alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from stasc.engines import noise

WORD = 2**32 - 1
words = st.integers(0, WORD)

KNOWN_ANSWERS = [  # counter, key, output: kat_vectors of Random123
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper writes it, in unbounded integers."""
    (left0, right0, left1, right1), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(left0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(left1 * 0xCD9E8D57, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ k0, low1, high0 ^ right1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return left0, right0, left1, right1


def plain_gumbel(key: int, position: int, token: int) -> float:
    word = plain_philox((token // 4, position, 0, 0), (key % 2**32, key // 2**32))[token % 4]
    return -math.log(-math.log((word + 0.5) / 2**32))


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    return tuple(int(word) for word in noise.philox((c0, c1, c2, c3), (k0, k1)))


def keys(count: int, first: int = 0) -> Tensor:
    return torch.tensor([noise.noise_key("test", index) for index in range(first, first + count)])


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, output: str) -> None:
    def parsed(text: str) -> tuple[int, ...]:
        return tuple(int(word, 16) for word in text.split())

    assert philox(parsed(counter), parsed(key)) == parsed(output)
    assert plain_philox(parsed(counter), parsed(key)) == parsed(output)


@given(counter=st.tuples(words, words, words, words), key=st.tuples(words, words))
def test_philox_in_int64_wraps_as_unsigned_integers_do(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert philox(counter, key) == plain_philox(counter, key)


@given(key=st.integers(0, 2**63 - 1), position=st.integers(0, 2**20), token=st.integers(0, 300_000))
def test_noise_of_a_token_is_a_function_of_key_position_and_token(key: int, position: int, token: int) -> None:
    found = noise.gumbel(torch.tensor([key]), position, torch.tensor([[token]])).item()
    assert found == pytest.approx(plain_gumbel(key, position, token), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 7, 8, 50, 257, 1000])
def test_noise_of_the_whole_vocabulary_is_the_noise_of_each_token(vocabulary: int) -> None:
    every = torch.arange(vocabulary).expand(6, -1)
    assert torch.equal(noise.gumbel_all(keys(6), 3, vocabulary), noise.gumbel(keys(6), 3, every))


def test_a_larger_vocabulary_changes_no_noise_of_a_smaller_one() -> None:
    assert torch.equal(noise.gumbel_all(keys(4), 0, 101), noise.gumbel_all(keys(4), 0, 4096)[:, :101])


@settings(deadline=None, max_examples=30)
@given(rows=st.permutations(range(9)), cut=st.integers(1, 8))
def test_permuting_and_splitting_rows_changes_no_bit(rows: list[int], cut: int) -> None:
    order = torch.tensor(rows)
    ids = (torch.arange(9).unsqueeze(1) * 131 + torch.arange(17) * 29) % 1000
    whole, whole_all = noise.gumbel(keys(9), 5, ids), noise.gumbel_all(keys(9), 5, 53)
    first, second = order[:cut], order[cut:]
    parts = [noise.gumbel(keys(9)[part], 5, ids[part]) for part in (first, second)]
    parts_all = [noise.gumbel_all(keys(9)[part], 5, 53) for part in (first, second)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(torch.cat(parts_all), whole_all[order])


def test_the_order_of_candidates_changes_no_bit() -> None:
    ids = torch.tensor([[5, 900, 3, 2, 77]])
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(noise.gumbel(keys(1), 2, ids[:, order]), noise.gumbel(keys(1), 2, ids)[:, order])


NAMED = (0, "train", "correction", 1, "q7", 2, 3)  # seed, split, stage, iteration, question, i, k


@pytest.mark.parametrize(
    "other",
    [
        (1, "train", "correction", 1, "q7", 2, 3),
        (0, "test", "correction", 1, "q7", 2, 3),
        (0, "train", "initial", 1, "q7", 2, 3),
        (0, "train", "correction", 2, "q7", 2, 3),
        (0, "train", "correction", 1, "q8", 2, 3),
        (0, "train", "correction", 1, "q7", 3, 3),
        (0, "train", "correction", 1, "q7", 2, 4),
        (0, "train", "correction", 1, "q7", 3, 2),
        (0, "train", "correction", 1, "q7", 2),
    ],
)
def test_each_part_of_a_name_decides_the_key(other: tuple[str | int, ...]) -> None:
    assert noise.noise_key(*NAMED) == noise.noise_key(*NAMED)
    assert noise.noise_key(*NAMED) != noise.noise_key(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "bc"), ("ab", "c")),
        ((1, 23), (12, 3)),
        (("ab",), ("a", "b")),
        (("a", ""), ("a",)),
        (("", "a"), ("a", "")),
        (("q 1", 1), ("q", "1 1")),
    ],
)
def test_parts_of_a_name_cannot_run_together(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert noise.noise_key(*one) != noise.noise_key(*other)


def test_no_two_of_many_names_share_a_key() -> None:
    names = [
        (seed, "train", "initial", n, f"q{q}", i)
        for seed in range(5)
        for n in range(4)
        for q in range(250)
        for i in range(4)
    ]
    assert len({noise.noise_key(*name) for name in names}) == len(names) == 20_000


def test_a_key_is_the_same_in_every_release() -> None:
    digest = bytes.fromhex("6e6ce4b42bdd785d")  # printf '0\x1ftrain\x1finitial\x1f1\x1fq7\x1f0' | b2sum -l 64
    assert noise.noise_key(0, "train", "initial", 1, "q7", 0) == int.from_bytes(digest, "little") // 2


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(), max_size=5))
def test_a_key_fits_int64(parts: list[str | int]) -> None:
    assert 0 <= noise.noise_key(*parts) < 2**63


def test_noise_is_standard_gumbel() -> None:
    sample = noise.gumbel_all(keys(100), 0, 2000).flatten()
    count = len(sample)
    variance = math.pi**2 / 6
    assert sample.mean().item() == pytest.approx(0.5772156649, abs=4 * math.sqrt(variance / count))
    assert sample.var().item() == pytest.approx(variance, abs=4 * variance * math.sqrt(4.4 / count))  # kurtosis 5.4
    assert stats.kstest(sample.numpy(), "gumbel_r").pvalue > 1e-3


def test_noise_along_positions_is_standard_gumbel() -> None:
    one_token = torch.tensor([[17]])
    sample = torch.cat([noise.gumbel(keys(1), position, one_token) for position in range(2000)]).flatten()
    assert stats.kstest(sample.numpy(), "gumbel_r").pvalue > 1e-3


def test_the_outermost_words_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, WORD):
        monkeypatch.setattr(noise, "philox", lambda counter, key, word=word: (counter[0] * 0 + word,) * 4)
        found = noise.gumbel(keys(1), 0, torch.tensor([[0]])).item()
        assert found == pytest.approx(-math.log(-math.log((word + 0.5) / 2**32)), rel=1e-6)
        assert math.isfinite(found)


# Correlations of independent samples of this size have a standard deviation of 1 / sqrt(COUNT).
ROWS, VOCABULARY = 50, 2000
COUNT = ROWS * VOCABULARY


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("position", [0, 1, 255, 65_535])
def test_noise_is_independent_across_positions(position: int) -> None:
    here, there = (noise.gumbel_all(keys(ROWS), p, VOCABULARY) for p in (position, position + 1))
    assert abs(correlation(here, there)) < 4 / math.sqrt(COUNT)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 8, 1024])
def test_noise_is_independent_across_tokens(apart: int) -> None:
    sample = noise.gumbel_all(keys(ROWS), 0, VOCABULARY + apart)
    assert abs(correlation(sample[:, :-apart], sample[:, apart:])) < 4 / math.sqrt(COUNT)


def test_noise_is_independent_across_keys() -> None:
    sample = noise.gumbel_all(keys(ROWS + 1), 0, VOCABULARY)
    assert abs(correlation(sample[:-1], sample[1:])) < 4 / math.sqrt(COUNT)


@pytest.mark.parametrize("step", [1, 2**31, 2**32, 2**62])
def test_keys_that_differ_in_one_bit_give_independent_noise(step: int) -> None:
    even = torch.arange(ROWS) * 2
    here, there = (noise.gumbel_all(some, 0, VOCABULARY) for some in (even, even + step))
    assert abs(correlation(here, there)) < 4 / math.sqrt(COUNT)


def test_no_two_keys_positions_or_tokens_share_their_noise() -> None:
    sample = torch.stack([noise.gumbel_all(keys(5), position, 40) for position in range(5)])
    assert len(sample.unique()) == sample.numel()
    assert all(not torch.equal(one, other) for one, other in pairwise(sample))


@pytest.mark.gpu
def test_integer_words_are_the_same_on_cuda() -> None:
    generator = torch.Generator().manual_seed(0)
    c0, c1, c2, c3, k0, k1 = torch.randint(0, 2**32, (6, 10_000), generator=generator)
    expected = noise.philox((c0, c1, c2, c3), (k0, k1))
    c0, c1, c2, c3, k0, k1 = (tensor.cuda() for tensor in (c0, c1, c2, c3, k0, k1))
    for ours, theirs in zip(expected, noise.philox((c0, c1, c2, c3), (k0, k1)), strict=True):
        assert torch.equal(ours, theirs.cpu())


@pytest.mark.gpu
def test_noise_on_cuda_is_that_of_the_cpu_to_the_last_digits_of_a_logarithm() -> None:
    expected = noise.gumbel_all(keys(8), 3, 1001)
    found = noise.gumbel_all(keys(8).cuda(), 3, 1001).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
