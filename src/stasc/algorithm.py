"""Algorithm 1 of STaSC (arXiv 2503.08681) in the paper's symbols. No files, no printing, no configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stasc.choices.filter import Filter
from stasc.choices.init import Init
from stasc.choices.start import Start
from stasc.records import Iteration, LeftOut, Pair, Split

Model = TypeVar("Model")
InitialAnswers = TypeVar("InitialAnswers")  # y1[question][i]
Corrections = TypeVar("Corrections")  # y2[question][i][k]


def stasc(
    m_0: Model,
    train: Split,
    test: Split,
    *,
    init: Init,
    sample: Callable[[Model, Split, int], InitialAnswers],
    correct: Callable[[Model, Split, InitialAnswers, int], Corrections],
    score: Callable[[Split, InitialAnswers, Corrections], Sequence[Pair]],
    keep: Filter,
    unusable: Callable[[Pair], str | None],
    start: Start,
    finetune: Callable[[Model, Sequence[Pair], int], Model],
    iterations: int,
    patience: int,
) -> Iterator[Iteration[Model]]:
    """Yields one Iteration per n = 0..N; n = 0 is the evaluation of M_0, zero-shot self-correction.

    `sample` and `correct` take the iteration whose sampling noise they use. The test split always has that of
    iteration 0, so evaluations differ by their models alone. `unusable` gives the reason why a pair that passed the
    filter cannot be trained on, or None. Ends early after `patience` iterations in a row that kept nothing.
    """
    y1_test = sample(m_0, test, 0)
    y2_test = correct(m_0, test, y1_test, 0)
    yield Iteration(0, m_0, (), (), score(test, y1_test, y2_test))

    m_prev, idle = m_0, 0
    for n in range(1, iterations + 1):
        if n == 1 or init.anew:
            y1 = sample(init(m_0, m_prev), train, n)  # step 1: initial answers
        y2 = correct(m_prev, train, y1, n)  # step 2: corrections
        pairs = score(train, y1, y2)
        passed = [(pair, unusable(pair)) for pair in pairs if keep(pair)]  # step 3: filter
        kept = [pair for pair, reason in passed if reason is None]
        m_n = finetune(start(m_0, m_prev), kept, n) if kept else m_prev  # step 4: fine-tune

        if init.anew:
            y1_test = sample(init(m_0, m_n), test, 0)
        y2_test = correct(m_n, test, y1_test, 0)
        left_out = [LeftOut(pair, reason) for pair, reason in passed if reason is not None]
        yield Iteration(n, m_n, pairs, kept, score(test, y1_test, y2_test), left_out)

        idle = 0 if kept else idle + 1
        if idle == patience:
            return
        m_prev = m_n
