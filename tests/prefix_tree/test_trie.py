"""Sequences that share long prefixes share a part, and no part is too large."""

from __future__ import annotations

from stasc.prefix_tree.trie import Trie, partition


def test_parts_hold_so_many_tokens_or_one_sequence_and_those_that_share_most_stand_together() -> None:
    sequences = [(1, 2, 3), (7, 8), (1, 2, 3), (1,) * 20, (1, 2, 9)]
    whole = list(partition(sequences, 1000))
    assert sorted(whole[0]) == [0, 1, 2, 3, 4]
    assert len(whole) == 1
    assert [sorted(part) for part in partition(sequences, 4)] == [[3], [0, 2, 4], [1]]
    assert [len(part) for part in partition(sequences, 1000, 2)] == [2, 2, 1]
    assert [len(part) for part in partition(sequences, 1)] == [1, 2, 1, 1], "an equal one costs nothing"
    for most in range(1, 40):
        found = list(partition(sequences, most))
        assert sorted(index for part in found for index in part) == [0, 1, 2, 3, 4]
        for part in found:
            trie = Trie()
            for index in part:
                trie.add(sequences[index])
            assert len(trie) <= most or len({sequences[index] for index in part}) == 1
