"""What a run advises when nothing was kept: rewards are made up, and the counts worked out by hand."""

from __future__ import annotations

import pytest

from stasc.choices.filter import All, Lenient, Maintaining, Strict
from stasc.records import Answer, LeftOut, Pair, Question
from stasc.runs.advice import not_kept, nothing_kept, nothing_usable

STRICT, LENIENT, MAINTAINING = Strict(0.0), Lenient(0.0, 1.0), Maintaining(1.0)


def pairs(*rewards: tuple[float, float], truncated: bool = False) -> list[Pair]:
    question, answer = Question("q", "?", ("a",)), Answer("b", 1, truncated)
    return [Pair(question, 0, 0, k, answer, answer, r1, r2) for k, (r1, r2) in enumerate(rewards)]


def test_right_answers_that_stay_right_are_what_lenient_would_keep() -> None:
    said = nothing_kept(pairs((1, 1), (1, 1), (1, 0), (0, 0)), STRICT, 1.0, "sampling.n_corr")
    assert said == (
        "filter=strict kept 0 of 4 pairs (mean r1 0.75, r2 0.50), nothing to train on; "
        "raise sampling.n_corr or dataset.n_train, or take filter=lenient, which keeps 2 of these pairs"
    )


def test_lenient_is_not_advised_where_it_keeps_nothing_either() -> None:
    said = nothing_kept(pairs((1, 0), (0, 0)), STRICT, 1.0, "sampling.n_corr")
    assert said.endswith("nothing to train on; raise sampling.n_corr or dataset.n_train")


def test_lenient_is_advised_where_maintaining_drops_improvements() -> None:
    assert nothing_kept(pairs((0, 1)), MAINTAINING, 1.0, "sampling.n_corr").endswith("keeps 1 of these pairs")


@pytest.mark.parametrize("keep", [STRICT, LENIENT, MAINTAINING])
def test_without_any_reward_no_filter_is_advised(keep: Strict | Lenient | Maintaining) -> None:
    said = nothing_kept(pairs((0, 0), (0, 0)), keep, 1.0, "sampling.n_corr")
    assert "no answer earned a reward, so no filter helps" in said
    assert "take filter=" not in said and "max_new_tokens" not in said


def test_answers_that_were_cut_off_are_named() -> None:
    said = nothing_kept(pairs((0, 0), truncated=True), STRICT, 1.0, "sampling.n_corr")
    assert "raise sampling.max_new_tokens (100% of the answers were cut off)" in said


def test_the_trained_answers_setting_is_named() -> None:
    assert "raise sampling.n_init or" in nothing_kept(pairs((1, 0)), STRICT, 1.0, "sampling.n_init")


def test_pairs_that_cannot_be_trained_on_are_counted_by_reason() -> None:
    cut, refused, other = pairs((0, 1), (0, 1), (0, 0))
    said = nothing_usable([cut, refused, other], [LeftOut(cut, "truncated"), LeftOut(refused, "prompt")])
    assert said.startswith(
        "2 of 3 pairs passed the filter, and none can be trained on (1: the token limit ended the answer"
    )
    assert said.endswith("; raise sampling.max_new_tokens, or set finetune.truncated=keep")
    assert nothing_usable([refused], [LeftOut(refused, "prompt")]).endswith("; see pairs.jsonl")


def test_a_marker_that_answers_lack_is_named_instead_of_a_stronger_model() -> None:
    said = nothing_kept(pairs((0, 0)), STRICT, 1.0, "sampling.n_corr", lambda answer: True)
    assert "100% of the answers lack the marker that reward.scope=final looks for" in said
    assert "stronger model" in nothing_kept(pairs((0, 0)), STRICT, 1.0, "sampling.n_corr", lambda answer: False)


@pytest.mark.parametrize(
    ("keep", "r1", "r2", "told"),
    [
        (Strict(0.0), 1.0, 0.0, "not better: r1 1, r2 0"),
        (Strict(0.0), 1.0, 1.0, "not better: r1 1, r2 1"),
        (Strict(0.25), 0.5, 2 / 3, "not better by more than 0.25: r1 0.5, r2 0.6667"),
        (Lenient(0.0, 1.0), 1.0, 0.0, "right, and made worse: r1 1, r2 0"),
        (Lenient(0.0, 1.0), 0.0, 0.0, "wrong, and not better: r1 0, r2 0"),
        (Lenient(0.0, 0.5), 0.5, 0.25, "right, and made worse: r1 0.5, r2 0.25"),
        (Maintaining(1.0), 0.0, 1.0, "the initial answer is wrong: r1 0, r2 1"),
        (Maintaining(1.0), 1.0, 0.0, "right, and made wrong: r1 1, r2 0"),
        (All(), 0.0, 0.0, "left out by the filter: r1 0, r2 0"),
        (lambda r1, r2: False, 0.0, 1.0, "left out by the filter: r1 0, r2 1"),
    ],
)
def test_a_dropped_pair_is_told_by_its_filters_rule(keep, r1: float, r2: float, told: str) -> None:  # type: ignore[no-untyped-def]
    assert not_kept(keep, r1, r2) == told
