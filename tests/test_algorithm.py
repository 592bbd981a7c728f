"""Algorithm 1 with fake parts: models are names, answers tell where they come from, and every call is logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import GeneratorType
from typing import Any

import pytest

from stasc.algorithm import stasc
from stasc.choices import init, pairing, start
from stasc.choices.filter import Strict
from stasc.choices.init import Init
from stasc.records import Answer, Iteration, Pair, Question, Split

FIXED, EVOLVING = init.Fixed(), init.Evolving()
FROM_M0, FROM_PREVIOUS = start.Fixed(), start.Evolving()
ALWAYS = frozenset(range(1, 100))

TRAIN = Split("train", (Question("a", "A?", ("1",)), Question("b", "B?", ("2",))))
TEST = Split("test", (Question("t", "T?", ("3",)),))


@dataclass
class Lab:
    """Fake stages. Corrections of the iterations in `improves` are right, all else is wrong: r1 = 0 and r2 = 1 or 0.

    An answer reads `y1 M0 train 1 a 0` (model, split, noise iteration, question, i), a correction
    `y2 M0 train 1 0 <- y1 ...` (model, split, noise iteration, k, and the answer it saw).
    """

    improves: frozenset[int] = ALWAYS
    n_init: int = 1
    n_corr: int = 1
    reward: Callable[[str, Sequence[str]], float] | None = None
    pair: pairing.Pairing = pairing.own
    unusable: Callable[[Pair], str | None] = lambda pair: None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    rated_by_keep: list[tuple[float, float]] = field(default_factory=list)
    trained_on: list[Sequence[Pair]] = field(default_factory=list)

    def sample(self, model: str, split: Split, n: int) -> list[list[Answer]]:
        self.calls.append(("sample", model, split.name, n))
        return [
            [Answer(f"y1 {model} {split.name} {n} {question.id} {i}", 1) for i in range(self.n_init)]
            for question in split.questions
        ]

    def correct(self, model: str, split: Split, y1: Sequence[Sequence[Answer]], n: int) -> list[list[list[Answer]]]:
        self.calls.append(("correct", model, split.name, n))
        return [
            [
                [Answer(f"y2 {model} {split.name} {n} {k} <- {seen.text}", 1) for k in range(self.n_corr)]
                for seen in answers
            ]
            for answers in y1
        ]

    def rate(self, text: str, references: Sequence[str]) -> float:
        words = text.split()
        return float(words[0] == "y2" and words[2] == "train" and int(words[3]) in self.improves)

    def keep(self, pair: Pair) -> bool:
        self.rated_by_keep.append((pair.r1, pair.r2))
        return Strict(0.0)(pair.r1, pair.r2)

    def finetune(self, model: str, kept: Sequence[Pair], n: int) -> str:
        self.calls.append(("finetune", model, n))
        self.trained_on.append(kept)
        return f"M{n}"

    def iterate(
        self,
        *,
        init: Init = EVOLVING,
        start: Callable[[str, str], str] = FROM_PREVIOUS,
        iterations: int = 2,
        patience: int = 1,
    ) -> Iterator[Iteration[str]]:
        return stasc(
            "M0",
            TRAIN,
            TEST,
            init=init,
            sample=self.sample,
            correct=self.correct,
            score=partial(pairing.score, reward=self.reward or self.rate, pairing=self.pair),
            keep=self.keep,
            unusable=self.unusable,
            start=start,
            finetune=self.finetune,
            iterations=iterations,
            patience=patience,
        )

    def run(self, **settings: Any) -> list[Iteration[str]]:
        return list(self.iterate(**settings))

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        """The calls whose first words are `names`, in order."""
        return [call for call in self.calls if call[0] in names]


def test_what_cannot_be_trained_on_is_left_out_of_what_is_kept() -> None:
    lab = Lab(unusable=lambda pair: "truncated" if pair.question.id == "a" else None)
    (_, after) = lab.run(iterations=1)
    assert [pair.question.id for pair in after.kept] == ["b"]
    assert [(pair.question.id, reason) for pair, reason in after.left_out] == [("a", "truncated")]
    assert lab.trained_on == [after.kept]


def test_if_all_that_passed_is_left_out_nothing_is_trained() -> None:
    lab = Lab(unusable=lambda pair: "empty")
    (_, after) = lab.run(iterations=3)
    assert (after.model, list(after.kept), len(after.left_out)) == ("M0", [], 2)
    assert not lab.trained_on


def texts(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.y1.text, pair.y2.text) for pair in pairs]


def test_everything_evolving_takes_every_step_in_the_order_of_algorithm_1() -> None:
    lab = Lab()
    lab.run(init=EVOLVING, start=FROM_PREVIOUS, iterations=2)
    assert lab.calls == [
        ("sample", "M0", "test", 0),
        ("correct", "M0", "test", 0),
        ("sample", "M0", "train", 1),
        ("correct", "M0", "train", 1),
        ("finetune", "M0", 1),
        ("sample", "M1", "test", 0),
        ("correct", "M1", "test", 0),
        ("sample", "M1", "train", 2),
        ("correct", "M1", "train", 2),
        ("finetune", "M1", 2),
        ("sample", "M2", "test", 0),
        ("correct", "M2", "test", 0),
    ]


def test_everything_fixed_samples_initial_answers_once_per_split_and_trains_m0_every_time() -> None:
    lab = Lab()
    lab.run(init=FIXED, start=FROM_M0, iterations=2)
    assert lab.calls == [
        ("sample", "M0", "test", 0),
        ("correct", "M0", "test", 0),
        ("sample", "M0", "train", 1),
        ("correct", "M0", "train", 1),
        ("finetune", "M0", 1),
        ("correct", "M1", "test", 0),
        ("correct", "M1", "train", 2),
        ("finetune", "M0", 2),
        ("correct", "M2", "test", 0),
    ]


@pytest.mark.parametrize("begin", [FROM_M0, FROM_PREVIOUS])
def test_fixed_initial_answers_of_iteration_1_are_the_ones_corrected_in_every_iteration(
    begin: Callable[[str, str], str],
) -> None:
    _, *iterations = Lab().run(init=FIXED, start=begin, iterations=3)
    for iteration in iterations:
        assert [pair.y1.text for pair in iteration.pairs] == ["y1 M0 train 1 a 0", "y1 M0 train 1 b 0"]


@pytest.mark.parametrize("begin", [FROM_M0, FROM_PREVIOUS])
def test_evolving_initial_answers_come_from_the_previous_model_with_noise_of_their_iteration(
    begin: Callable[[str, str], str],
) -> None:
    _, *iterations = Lab().run(init=EVOLVING, start=begin, iterations=3)
    assert [iteration.pairs[0].y1.text for iteration in iterations] == [
        "y1 M0 train 1 a 0",
        "y1 M1 train 2 a 0",
        "y1 M2 train 3 a 0",
    ]


@pytest.mark.parametrize("first", [FIXED, EVOLVING])
@pytest.mark.parametrize(("begin", "trained"), [(FROM_M0, ["M0", "M0", "M0"]), (FROM_PREVIOUS, ["M0", "M1", "M2"])])
def test_fine_tuning_starts_from_the_model_that_start_names(
    first: Init, begin: Callable[[str, str], str], trained: list[str]
) -> None:
    lab = Lab()
    lab.run(init=first, start=begin, iterations=3)
    assert lab.of("finetune") == [("finetune", model, n) for n, model in enumerate(trained, start=1)]


@pytest.mark.parametrize("first", [FIXED, EVOLVING])
@pytest.mark.parametrize("begin", [FROM_M0, FROM_PREVIOUS])
def test_corrections_come_from_the_previous_model_on_train_and_the_new_one_on_test(
    first: Init, begin: Callable[[str, str], str]
) -> None:
    lab = Lab()
    lab.run(init=first, start=begin, iterations=2)
    assert lab.of("correct") == [
        ("correct", "M0", "test", 0),
        ("correct", "M0", "train", 1),
        ("correct", "M1", "test", 0),
        ("correct", "M1", "train", 2),
        ("correct", "M2", "test", 0),
    ]


@pytest.mark.parametrize(
    ("first", "seen"),
    [
        (FIXED, ["y1 M0 test 0 t 0"] * 3),
        (EVOLVING, ["y1 M0 test 0 t 0", "y1 M1 test 0 t 0", "y1 M2 test 0 t 0"]),
    ],
)
def test_test_pairs_hold_the_initial_answers_of_init_and_the_corrections_of_the_new_model(
    first: Init, seen: list[str]
) -> None:
    iterations = Lab().run(init=first, iterations=2)
    assert [texts(iteration.test) for iteration in iterations] == [
        [(y1, f"y2 M{n} test 0 0 <- {y1}")] for n, y1 in enumerate(seen)
    ]


@pytest.mark.parametrize("first", [FIXED, EVOLVING])
def test_noise_of_the_test_split_is_always_that_of_iteration_0(first: Init) -> None:
    lab = Lab()
    lab.run(init=first, iterations=4)
    assert {call[3] for call in lab.of("sample", "correct") if call[2] == "test"} == {0}
    assert {call[3] for call in lab.of("sample", "correct") if call[2] == "train"} <= {1, 2, 3, 4}


def test_iteration_0_is_m0_before_any_training() -> None:
    first = next(Lab().iterate())
    assert (first.n, first.model, list(first.pairs), list(first.kept)) == (0, "M0", [], [])
    assert texts(first.test) == [("y1 M0 test 0 t 0", "y2 M0 test 0 0 <- y1 M0 test 0 t 0")]


def test_no_iterations_is_the_evaluation_of_m0_alone() -> None:
    lab = Lab()
    assert [iteration.n for iteration in lab.run(iterations=0)] == [0]
    assert lab.calls == [("sample", "M0", "test", 0), ("correct", "M0", "test", 0)]


def test_an_iteration_records_its_number_its_model_and_the_pairs_that_trained_it() -> None:
    lab = Lab()
    _, one, two = lab.run(iterations=2)
    assert [(one.n, one.model), (two.n, two.model)] == [(1, "M1"), (2, "M2")]
    assert [one.kept, two.kept] == lab.trained_on
    assert texts(two.kept) == [
        ("y1 M1 train 2 a 0", "y2 M1 train 2 0 <- y1 M1 train 2 a 0"),
        ("y1 M1 train 2 b 0", "y2 M1 train 2 0 <- y1 M1 train 2 b 0"),
    ]


def test_only_what_the_filter_keeps_is_trained_on() -> None:
    lab = Lab(reward=lambda text, references: float(text.startswith("y2") and " a " in text))
    _, one = lab.run(iterations=1)
    assert [(pair.question.id, pair.r1, pair.r2) for pair in one.pairs] == [("a", 0.0, 1.0), ("b", 0.0, 0.0)]
    assert [pair.question.id for pair in one.kept] == ["a"]
    assert lab.trained_on == [one.kept]


def test_nothing_kept_leaves_the_model_as_it_was_and_trains_nothing() -> None:
    lab = Lab(improves=frozenset({1, 3}))
    _, one, two, three = lab.run(iterations=3, patience=2)
    assert [one.model, two.model, three.model] == ["M1", "M1", "M3"]
    assert (len(two.pairs), two.kept) == (2, [])
    assert lab.of("finetune") == [("finetune", "M0", 1), ("finetune", "M1", 3)]


def test_nothing_kept_is_evaluated_all_the_same() -> None:
    *_, two = Lab(improves=frozenset({1})).run(iterations=2, patience=2)
    assert texts(two.test) == [("y1 M1 test 0 t 0", "y2 M1 test 0 0 <- y1 M1 test 0 t 0")]


def test_training_from_m0_after_nothing_was_kept_still_corrects_with_the_last_trained_model() -> None:
    lab = Lab(improves=frozenset({1, 3}))
    lab.run(start=FROM_M0, iterations=3, patience=2)
    assert [call for call in lab.of("correct") if call[2] == "train"][2] == ("correct", "M1", "train", 3)
    assert lab.of("finetune") == [("finetune", "M0", 1), ("finetune", "M0", 3)]


@pytest.mark.parametrize(
    ("improves", "patience", "last"),
    [
        ((), 1, 1),
        ((), 3, 3),
        ((1,), 1, 2),
        ((1, 2, 3), 2, 5),
        ((2, 4), 2, 6),  # 1 and 3 are idle alone: the count begins anew after 2 and after 4
        ((1, 3, 5, 7, 9), 2, 9),  # never twice in a row
    ],
)
def test_the_run_ends_after_patience_idle_iterations_in_a_row(
    improves: tuple[int, ...], patience: int, last: int
) -> None:
    iterations = Lab(improves=frozenset(improves)).run(iterations=9, patience=patience)
    assert [iteration.n for iteration in iterations] == list(range(last + 1))


def test_several_answers_and_corrections_are_paired_each_with_the_answer_it_saw() -> None:
    _, one = Lab(n_init=2, n_corr=3).run(iterations=1)
    first_question = [pair for pair in one.pairs if pair.question.id == "a"]
    assert [(pair.i, pair.seen, pair.k) for pair in first_question] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 2),
        (1, 1, 0),
        (1, 1, 1),
        (1, 1, 2),
    ]
    assert len(one.pairs) == 2 * 2 * 3
    assert all(pair.y2.text.endswith(f"<- {pair.y1.text}") for pair in one.pairs)


def _second_is_right(text: str, references: Sequence[str]) -> float:
    """The answer with i = 1 is right, and so are its corrections."""
    return float(text.endswith(" 1"))


def test_own_pairing_sees_no_improvement_where_right_stays_right_and_wrong_stays_wrong() -> None:
    *_, last = Lab(n_init=2, reward=_second_is_right, pair=pairing.own).run(iterations=3)
    assert (last.n, last.model, last.kept) == (1, "M0", [])
    assert [(pair.r1, pair.r2) for pair in last.pairs] == [(0.0, 0.0), (1.0, 1.0)] * 2


def test_crossed_pairing_trains_a_wrong_answer_on_the_correction_of_a_right_one() -> None:
    _, one = Lab(n_init=2, reward=_second_is_right, pair=pairing.crossed).run(iterations=1)
    assert len(one.pairs) == 2 * 4
    assert [(pair.question.id, pair.i, pair.seen) for pair in one.kept] == [("a", 0, 1), ("b", 0, 1)]
    assert texts(one.kept)[0] == ("y1 M0 train 1 a 0", "y2 M0 train 1 0 <- y1 M0 train 1 a 1")


def test_the_test_split_guides_neither_filter_nor_fine_tuning() -> None:
    def reward(text: str, references: Sequence[str]) -> float:
        return (0.25 if text.startswith("y1") else 0.75) if " test " in text else float(text.startswith("y2"))

    lab = Lab(reward=reward)
    iterations = lab.run(iterations=2)
    assert {(pair.r1, pair.r2) for iteration in iterations for pair in iteration.test} == {(0.25, 0.75)}
    assert set(lab.rated_by_keep) == {(0.0, 1.0)}
    assert {pair.question for kept in lab.trained_on for pair in kept} == set(TRAIN.questions)


def test_the_test_split_does_not_decide_when_the_run_ends() -> None:
    def ending(test_reward: float) -> list[int]:
        def reward(text: str, references: Sequence[str]) -> float:
            return test_reward if " test " in text else float(text.startswith("y2 M0"))

        return [iteration.n for iteration in Lab(reward=reward).run(iterations=5)]

    assert ending(0.0) == ending(1.0) == [0, 1, 2]


def test_nothing_runs_before_it_is_asked_for() -> None:
    lab = Lab()
    loop = lab.iterate(iterations=2)
    assert isinstance(loop, GeneratorType)
    assert lab.calls == []
    next(loop)
    assert lab.calls == [("sample", "M0", "test", 0), ("correct", "M0", "test", 0)]
    next(loop)
    assert lab.calls[-1] == ("correct", "M1", "test", 0)
    assert len(lab.calls) == 7


def test_the_last_iteration_is_handed_over_before_the_run_ends() -> None:
    loop = Lab(improves=frozenset()).iterate(iterations=5, patience=1)
    assert [next(loop).n, next(loop).n] == [0, 1]
    with pytest.raises(StopIteration):
        next(loop)
