"""The preallocated KV cache, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Cache,
    DynamicCache,
    LlamaForCausalLM,
)

from stasc.engines.hf import cache
from stasc.engines.hf.cache import PreallocatedCache


def same_cache(ours: Cache, theirs: Cache) -> None:
    for layer, same in zip(ours.layers, theirs.layers, strict=True):
        assert layer.get_seq_length() == same.get_seq_length()
        assert layer.get_mask_sizes(1) == same.get_mask_sizes(1)
        assert torch.equal(layer.keys, same.keys) and torch.equal(layer.values, same.values)


@pytest.mark.parametrize("spare", [0, 1, 100])
def test_a_preallocated_cache_equals_transformers_own(model: LlamaForCausalLM, spare: int) -> None:
    torch.manual_seed(0)
    theirs = DynamicCache(config=model.config)
    ours = PreallocatedCache(len(theirs.layers), spare)

    def add(rows: int, width: int) -> None:
        for index in range(len(theirs.layers)):
            keys, values = torch.randn(2, rows, 3, width, 4)
            for had, expected in zip(ours.update(keys, values, index), theirs.update(keys, values, index), strict=True):
                assert torch.equal(had, expected)
        same_cache(ours, theirs)

    add(4, 5)
    for indices in ([0, 2, 2, 3, 1], [4, 0]):
        for both in (ours, theirs):
            both.batch_select_indices(torch.tensor(indices))
        same_cache(ours, theirs)
        add(len(indices), 1)
        add(len(indices), 1)


def test_a_copy_of_a_cache_is_independent() -> None:
    one = PreallocatedCache(2, spare=3)
    for index in range(2):
        one.update(torch.arange(24.0).view(1, 3, 2, 4) + index, torch.arange(24.0).view(1, 3, 2, 4), index)
    copied = one.copy()
    same_cache(copied, one)
    copied.update(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 4), 0)
    assert (copied.get_seq_length(), one.get_seq_length()) == (3, 2)
    assert torch.equal(one.layers[0].padded[0][:, :, 2:], torch.zeros(1, 3, 3, 4))
    assert PreallocatedCache(2).copy().get_seq_length() == 0


def test_copy_from_writes_a_path_of_the_source_to_each_row() -> None:
    source = PreallocatedCache(1)
    keys = torch.arange(2 * 5.0).view(1, 2, 5, 1)  # of head h, token s: 5 h + s
    source.update(keys, -keys, 0)
    kept = PreallocatedCache(1, spare=2)
    kept.allocate(source, 3, 3)
    kept.copy_from(source, torch.tensor([2, 0]), torch.tensor([[0, 1, 4], [0, 0, 3]]))
    assert kept.layers[0].keys.flatten(1).tolist() == [[0, 0, 3, 5, 5, 8], [0] * 6, [0, 1, 4, 5, 6, 9]]
    assert torch.equal(kept.layers[0].values, -kept.layers[0].keys)


def test_a_step_copies_nothing_within_capacity(model: LlamaForCausalLM) -> None:
    (layer,) = PreallocatedCache(1, spare=3).layers
    token = torch.ones(2, 3, 1, 4)
    layer.update(token, token)
    where = layer.keys.data_ptr()
    for _ in range(3):
        layer.update(token, token)
        assert layer.keys.data_ptr() == where
    layer.update(token, token)
    assert layer.keys.data_ptr() != where
    assert layer.keys.shape == (2, 3, 5, 4)


@pytest.mark.parametrize(
    "stays, order",
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 1, 0, 1, 1], [4, 1, 2, 5]),
        ([1, 0, 0, 0], [0]),
        ([0, 0, 0, 1], [3]),
        ([0, 0], []),
    ],
)
def test_compact_moves_only_the_last_rows_into_gaps(stays: list[int], order: list[int]) -> None:
    assert cache.compact(torch.tensor(stays, dtype=torch.bool)).tolist() == order


def test_dropping_rows_copies_none_that_keep_their_position(model: LlamaForCausalLM) -> None:
    ours, theirs = PreallocatedCache(2, spare=3), DynamicCache(config=model.config)
    for both in (ours, theirs):
        for index in range(2):
            both.update(torch.arange(120.0).view(5, 3, 2, 4), torch.arange(120.0).view(5, 3, 2, 4) + index, index)
    where = ours.layers[0].keys.data_ptr()
    for indices in ([0, 4, 2], [2, 0, 1], [1]):
        ours.select(torch.tensor(indices))
        theirs.batch_select_indices(torch.tensor(indices))
        same_cache(ours, theirs)
    assert ours.layers[0].keys.data_ptr() == where
    PreallocatedCache(2).select(torch.tensor([0]))  # before the first token


def test_rows_multiply_without_a_full_copy_within_capacity() -> None:
    torch.manual_seed(0)
    ours, theirs = PreallocatedCache(1, spare=4, max_rows=10), DynamicCache()
    where = 0
    for indices in (range(4), [0, 1, 2, 3, 1], [4, 1, 0, 3, 2], [3, 1, 3, 0, 0, 0], [0, 5], range(2)):
        for both in (ours, theirs):
            if both.get_seq_length():
                both.select(torch.tensor(indices)) if both is ours else both.batch_select_indices(torch.tensor(indices))
        keys, values = torch.randn(2, len(indices), 3, 1, 4)
        for both in (ours, theirs):
            both.update(keys, values, 0)
        same_cache(ours, theirs)
        whole = ours.layers[0].padded
        assert all(len(part) == len(indices) and not part[:, :, ours.get_seq_length() :].any() for part in whole)
        if len(indices) == 5:
            assert where in (0, whole[0].data_ptr())
            where = whole[0].data_ptr()
