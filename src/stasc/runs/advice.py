"""Why pairs are not trained on: a pair's reason, as in pairs.jsonl, and advice for a run that keeps none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from stasc.choices.filter import Lenient, Maintaining, Option, Strict
from stasc.records import REASONS, LeftOut, Pair
from stasc.units import counted


def not_kept(option: Option | None, r1: float, r2: float) -> str:
    """Returns why a filter did not keep a pair with these rewards."""
    reason = "left out by the filter"
    if isinstance(option, Strict):
        reason = f"not better by more than {option.margin:g}" if option.margin else "not better"
    elif isinstance(option, Lenient):
        reason = "right, and made worse" if r1 >= option.correct_at else "wrong, and not better"
    elif isinstance(option, Maintaining):
        reason = "right, and made wrong" if r1 >= option.correct_at else "the initial answer is wrong"
    return f"{reason}: r1 {r1:.4g}, r2 {r2:.4g}"


def nothing_kept(
    pairs: Sequence[Pair],
    option: Option,
    correct_at: float,
    samples: str,
    unmarked: Callable[[str], bool] | None = None,
) -> str:
    """Returns why no pair was kept, and which settings would keep some.

    Args:
        option: the filter.
        correct_at: the reward from which an answer counts as right.
        samples: the setting for the number of trained answers that are sampled, such as `sampling.n_corr`.
        unmarked: whether an answer lacks the marker that its reward looks for.
    """
    mean_r1, mean_r2 = (sum(rewards) / len(pairs) for rewards in zip(*((p.r1, p.r2) for p in pairs), strict=True))
    found = (
        f"filter={type(option).__name__.lower()} kept 0 of {counted(len(pairs), 'pair')} "
        f"(mean r1 {mean_r1:.2f}, r2 {mean_r2:.2f}), nothing to train on; "
    )
    if not any(pair.r1 or pair.r2 for pair in pairs):
        answers = [answer for pair in pairs for answer in (pair.y1, pair.y2)]
        if unmarked is not None and (lacking := sum(map(unmarked, (one.text for one in answers)))) > len(answers) / 2:
            return found + (
                f"{lacking / len(answers):.0%} of the answers lack the marker that reward.scope=final looks for: raise "
                "sampling.max_new_tokens, take prompt=cot, which asks for the marker, or reward.scope=whole"
            )
        cut = sum(pair.y1.truncated + pair.y2.truncated for pair in pairs) / (2 * len(pairs))
        return found + (
            "no answer earned a reward, so no filter helps: look at y1 and y2 in pairs.jsonl, then "
            + (f"raise sampling.max_new_tokens ({cut:.0%} of the answers were cut off), " if cut > 0.5 else "")
            + "raise dataset.n_train or sampling.n_init, take another reward=, or a stronger model="
        )
    lenient = Lenient(0.0, correct_at)
    would_keep = sum(lenient(pair.r1, pair.r2) for pair in pairs)
    other = f", or take filter=lenient, which keeps {would_keep} of these pairs" if would_keep else ""
    return found + f"raise {samples} or dataset.n_train{other}"


def nothing_usable(pairs: Sequence[Pair], left_out: Sequence[LeftOut]) -> str:
    """Returns why no pair that passed the filter can be trained on, and which setting helps."""
    counts = Counter(reason for _, reason in left_out)
    reasons = "; ".join(f"{count}: {REASONS[reason]}" for reason, count in counts.items())
    way_out = (
        "raise sampling.max_new_tokens, or set finetune.truncated=keep" if counts["truncated"] else "see pairs.jsonl"
    )
    return (
        f"{len(left_out)} of {counted(len(pairs), 'pair')} passed the filter, and none can be trained on ({reasons}); "
        f"{way_out}"
    )
