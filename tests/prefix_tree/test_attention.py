"""Attention of a tree in rows equals that of the whole tree, with no more scores."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stasc.prefix_tree import attention
from stasc.prefix_tree.trie import Trie


def ragged(seed: int, prompts: int, completions: int) -> list[tuple[int, ...]]:
    """Sequences of any lengths, with several completions per prompt, some of which agree for a while or are equal."""
    draw = random.Random(seed)
    system = tuple(draw.choices(range(4, 200), k=draw.randint(0, 5)))
    found = []
    for _ in range(prompts):
        prompt = system + tuple(draw.choices(range(4, 200), k=draw.randint(1, 12)))
        found += [prompt + tuple(draw.choices((7, 8), k=draw.randint(1, 6))) for _ in range(completions)]
    return found


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize(("prompts", "completions"), [(1, 1), (1, 6), (5, 1), (8, 5)])
def test_tokens_in_rows_attend_to_all_their_ancestors_with_no_more_scores_than_the_tree(
    prompts: int, completions: int, before: int
) -> None:
    trie = Trie()
    for one in ragged(1, prompts, completions):
        trie.add(one)
    paths = [trie.path(token) for token in range(len(trie))]
    assert trie.depths() == [len(path) - 1 for path in paths]
    mask_TT = trie.attention_mask()
    assert [mask_T.nonzero().flatten().tolist() for mask_T in mask_TT] == [sorted(path) for path in paths]
    layout, mask_NWS = attention.rows(trie, before)
    mask_TS = torch.cat([torch.ones(len(trie), before, dtype=torch.bool), mask_TT], dim=1)
    assert sorted(token for segment in trie.segments() for token in segment) == list(range(len(trie)))
    assert mask_NWS.numel() <= mask_TS.numel()
    assert torch.equal(layout.queries_NW.flatten()[layout.slots_T], torch.arange(len(trie)))
    for token, slot in enumerate(layout.slots_T.tolist()):
        n, w = divmod(slot, layout.queries_NW.shape[1])
        attended = layout.keys_NS[n][mask_NWS[n, w]]
        assert torch.equal(attended, mask_TS[token].nonzero().flatten()), "each once"
    if (prompts, completions) == (8, 5):
        assert mask_NWS.numel() < mask_TS.numel() / 2


def test_rows_of_any_tree_have_no_more_scores_than_the_tree() -> None:
    draw = random.Random(0)
    for _ in range(300):
        trie, before = Trie(), draw.choice((0, 3, 200))
        for _ in range(draw.randint(1, 12)):
            trie.add(draw.choices(range(3), k=draw.randint(1, 12)))
        _, mask_NWS = attention.rows(trie, before)
        assert mask_NWS.numel() <= len(trie) * (before + len(trie))
        if before == 200:
            assert len(mask_NWS) <= len(attention.rows(trie)[1]), "the scores with the cached tokens count as well"


def test_many_short_completions_of_a_long_prompt_get_no_rows_of_their_own() -> None:
    trie = Trie()
    for c in range(10):
        trie.add([*range(300), *range(1000 * c, 1000 * c + 20)])
    _, mask_NWS = attention.rows(trie)
    assert mask_NWS.numel() <= len(trie) ** 2


@pytest.mark.parametrize("short", [0, 256], ids=["sdpa", "products"])
@pytest.mark.parametrize("before", [0, 3])
def test_attention_in_rows_is_that_of_the_whole_tree_for_values_of_any_size(
    short: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SHORT", short)
    torch.manual_seed(0)
    trie = Trie()
    for ids in ((1, 2, 3), (1, 2, 4, 5), (6,), (6, 7)):
        trie.add(ids)
    tokens, mask_TT = len(trie), trie.attention_mask()
    q, k = torch.randn(1, 6, tokens, 8), torch.randn(1, 3, before + tokens, 8)
    v = torch.randn(1, 3, before + tokens, 4)
    layout, mask_NWS = attention.rows(trie, before)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=False)
    found, _ = attention._attention(module, q, k, v, mask_NWS.unsqueeze(1), layout=layout)
    keys, values = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    mask_TS = torch.cat([torch.ones(tokens, before, dtype=torch.bool), mask_TT], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(q, keys, values, mask_TS).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        large = (100 * x.to(dtype) for x in (q, k, v))
        found, _ = attention._attention(module, *large, mask_NWS.unsqueeze(1), layout=layout)
        assert found.isfinite().all()
