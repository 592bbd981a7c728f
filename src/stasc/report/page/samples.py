"""Packs the answers for the page into blocks, one per seed and iteration, which the browser unpacks on demand.

Blocks beyond the size limit are left out, and the page names them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from stasc.report.records import Run, Sweep
from stasc.report.wording import listed

Kind = Literal["test", "train"]

PAGE_BYTES = 16_000_000  # limit for all packed blocks
TEST_SHARE = 0.8  # maximum share of these bytes for test answers; training pairs get the remainder
BLOCK_CHARACTERS = 8_000_000  # limit for a block, which a browser unpacks at once


@dataclass
class Packed:
    """Packed answers: `blocks` are gzip in base64, by kind, seed and iteration; `index` resolves their numbers.

    `questions` and `reasons` number texts in order of appearance.
    """

    index: dict[str, Any] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    blocks: dict[tuple[Kind, int, int], str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def pack(sweep: Sweep, n: int, budget: int = PAGE_BYTES) -> Packed:
    """Packs the test answers and training pairs of a sweep: the first seeds first, and of each seed iteration `n`."""
    runs = [run for run in (*sweep.runs, *sweep.baselines) if run.iterations]
    packed = Packed()
    reserved = round(budget * (1 - TEST_SHARE))
    left = budget - _fill(packed, "test", runs, n, budget - reserved)
    _fill(packed, "train", runs, n, left)
    packed.index = {
        "cells": list(dict.fromkeys(run.cell for run in runs)),
        "questions": [
            {"id": name, "text": known.text, "references": list(known.references[:8])}
            if (known := sweep.questions.get(name))
            else {"id": name}
            for name in packed.questions
        ],
        "why": list(packed.reasons),
        "blocks": [list(block) for block in packed.blocks],
    }
    return packed


def _fill(packed: Packed, kind: Kind, runs: Sequence[Run], n: int, limit: int) -> int:
    """Adds blocks up to the limit. Returns: their size in bytes."""
    cells = list(dict.fromkeys(run.cell for run in runs))
    size, cut = 0, False
    missing: list[tuple[int, int]] = []
    for seed in sorted({run.seed for run in runs}):
        own = [run for run in runs if run.seed == seed]
        frames, thinned = (pd.DataFrame(), False) if missing else _frames(kind, own, cells)
        cut |= thinned
        iterations = {entry["n"] for run in own for entry in run.iterations} - ({0} if kind == "train" else set())
        for one in sorted(iterations, key=lambda one: (one != n, one)):  # n and the untrained model are compared
            block = "" if missing else _block(frames, one, packed)
            if missing or size + len(block) > limit:
                missing.append((seed, one))
            elif block:
                packed.blocks[kind, seed, one] = block
                size += len(block)
    what, file = ("test answers", "outcomes.jsonl") if kind == "test" else ("training pairs", "pairs.jsonl")
    if missing:
        packed.left_out.append(f"{what} of {_named(missing)} (each run's {file} has them)")
    if cut:
        packed.left_out.append(f"{what} of some questions, in every iteration (each run's {file} has all)")
    return size


def _frames(kind: Kind, runs: Sequence[Run], cells: Sequence[str]) -> tuple[pd.DataFrame, bool]:
    """Returns the answers of these runs, and whether some were left out."""
    parts, thinned = [], False
    for run in runs:
        frame = run.outcomes if kind == "test" else run.pairs()
        if not frame.empty:
            part, whole = _thinned(frame, BLOCK_CHARACTERS // len(runs))
            thinned |= not whole
            parts.append(part.assign(cell=cells.index(run.cell), why=_reasons(run, part) if kind == "train" else ""))
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), thinned


def _thinned(frame: pd.DataFrame, characters: int) -> tuple[pd.DataFrame, bool]:
    """Returns the answers to as many of the first questions as fit, and whether these are all."""
    length = frame["y1"].str.len() + frame["y2"].str.len()
    by_question = length.groupby([frame["question"], frame["n"]], sort=False).sum().groupby(level=0, sort=False).max()
    fits = by_question.cumsum() <= characters
    return (frame, True) if fits.all() else (frame[frame["question"].isin(fits[fits].index)], False)


def _block(frames: pd.DataFrame, n: int, packed: Packed) -> str:
    """Packs one iteration's answers by columns, each distinct text once."""
    if frames.empty or (rows := frames[frames["n"] == n]).empty:
        return ""
    question = _numbered(rows["question"], packed.questions)
    rows = rows.assign(question=question).sort_values(["question", "cell"], kind="stable")
    codes, texts = pd.factorize(pd.concat([rows["y1"], rows["y2"]]))
    content: dict[str, Any] = {
        **{name: rows[name].tolist() for name in ("cell", "question", "r1", "r2")},
        **{"y1": codes[: len(rows)].tolist(), "y2": codes[len(rows) :].tolist(), "texts": texts.tolist()},
    }
    if "kept" in rows:
        content |= {"kept": rows["kept"].astype(int).tolist(), "why": _numbered(rows["why"], packed.reasons).tolist()}
    return zipped(json.dumps(content, separators=(",", ":"), default=str), 6)


def zipped(text: str, level: int = 9) -> str:
    """Returns the text as gzip in base64, which the page's script unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), level, mtime=0)).decode()


def _numbered(names: pd.Series, known: dict[str, int]) -> pd.Series:
    for name in names.unique():
        known.setdefault(name, len(known))
    return names.map(known)


def _reasons(run: Run, frame: pd.DataFrame) -> pd.Series:
    """Returns why each pair was kept or not."""
    facts = frame[["r1", "r2", "kept", "dropped"]].fillna({"dropped": ""})
    texts = {
        (r1, r2, kept, dropped): dropped or reason(run.settings, r1, r2, kept)
        for r1, r2, kept, dropped in facts.drop_duplicates().itertuples(index=False)
    }
    return pd.Series([texts[row] for row in facts.itertuples(index=False, name=None)], index=frame.index, dtype=object)


def reason(settings: Mapping[str, Any], r1: float, r2: float, kept: bool) -> str:
    """Returns why a pair was kept or not, in the terms of the run's filter."""
    chosen = settings.get("filter") or {}
    option = str(chosen.get("_target_", "")).removeprefix("stasc.choices.filter.")
    change = f"r2 − r1 = {r2 - r1:.3g}"
    known = not settings.get("baseline") and option in ("Strict", "Lenient", "Maintaining")
    if not known:
        return "kept" if kept else "left out by the run's own rule"
    margin, correct_at = float(chosen.get("margin") or 0), float(chosen.get("correct_at") or 1)
    better = option != "Maintaining" and r2 - r1 > margin
    if kept:
        return f"the correction is better: {change}" if better else "right, and still right"
    if option == "Strict":
        return f"not better by more than {margin:g}: {change}"
    if r1 < correct_at:
        return "the initial answer is not right" if option == "Maintaining" else f"wrong, and not better: {change}"
    return f"right, and made worse: {change}"


def _named(missing: Sequence[tuple[int, int]]) -> str:
    """Returns `seed 1, iterations 1, 2 and 3`, for each seed."""
    by_seed = {seed: sorted(n for one, n in missing if one == seed) for seed, _ in missing}
    return "; ".join(
        f"seed {seed}, iteration{'s' if len(ns) > 1 else ''} {listed([*map(str, ns)])}" for seed, ns in by_seed.items()
    )
