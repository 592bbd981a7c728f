"""The finished example in multirun/: what its report says is what its outcomes say, by a computation of its own."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "multirun" / "smollm2_countries"
PLUS = {"init": "evolving", "filter": "lenient", "start": "evolving"}
VARIANTS = {
    f"{init}{keep}{start}": {"init": init == "E", "filter": keep == "N", "start": start == "E"}
    for init in "FE"
    for keep in "IN"
    for start in "FE"
}


@pytest.fixture(scope="module")
def report() -> Any:
    return json.loads((EXAMPLE / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def outcomes() -> pd.DataFrame:
    return pd.read_json(EXAMPLE / "outcomes.jsonl.gz", lines=True)


@pytest.fixture(scope="module")
def last(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Of the variants, at the last iteration."""
    return outcomes[(outcomes.iteration == 3) & outcomes.baseline.isna()]


def close(found: float, expected: float, within: float = 1e-9) -> bool:
    return abs(found - expected) <= within * max(1, abs(expected))


def test_it_is_small_and_has_no_weights() -> None:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert {path.suffix for path in files} <= {".html", ".json", ".jsonl", ".svg", ".png", ".gz", ".md"}


def test_each_run_left_its_summary(report: Any, outcomes: pd.DataFrame) -> None:
    """Eight variants and three baselines, of three seeds each; and their accuracies are those of the outcomes."""
    summaries = {path.parent.name: json.loads(path.read_text()) for path in EXAMPLE.glob("*/summary.json")}
    assert len(summaries) == (8 + 3) * 3 and report["provenance"]["runs"] == dict.fromkeys(summaries, "finished")
    for name, summary in summaries.items():
        cell, seed = name.rsplit("-", 1)[0].split("-seed")
        of_run = outcomes[(outcomes.cell == cell) & (outcomes.seed == int(seed))]
        for entry in summary["iterations"]:
            some = of_run[of_run.iteration == entry["n"]]
            assert close(entry["test"]["init_acc"], some.initial.mean()), name
            assert close(entry["test"]["corr_acc"], some.corrected.mean()), name


def test_cells_are_the_means_of_their_outcomes(report: Any, outcomes: pd.DataFrame, last: pd.DataFrame) -> None:
    pool = within([table(rows, "corrected") for _, rows in trained(outcomes)])
    cells = {cell["name"]: cell for cell in report["cells"] if cell["kind"] == "variant"}
    assert set(cells) == set(VARIANTS) == set(last.cell)
    for name, rows in last.groupby("cell"):
        cell, y1, y2 = cells[str(name)], rows.initial == 1, rows.corrected == 1
        assert close(cell["initial"]["value"], 100 * y1.mean())
        assert close(cell["correction"]["value"], 100 * y2.mean())
        assert close(cell["gain"]["value"], 100 * (y2.mean() - y1.mean()))
        assert close(cell["transitions"]["wrong_right"], 100 * (~y1 & y2).mean())
        assert close(cell["transitions"]["right_wrong"], 100 * (y1 & ~y2).mean())
        low, high, _ = crossed(table(rows, "corrected"), pool)
        assert close(cell["correction"]["low"], max(low, 0)) and close(cell["correction"]["high"], min(high, 100))


def test_baselines_are_the_means_of_their_outcomes(report: Any, outcomes: pd.DataFrame) -> None:
    cells = {cell["name"]: cell for cell in report["cells"]}
    pools = {
        "corrected": within([table(rows, "corrected") for _, rows in trained(outcomes)]),
        "initial": within([table(rows, "initial") for name, rows in trained(outcomes) if not name.startswith("F")]),
    }
    for name, n in (("gold", 3), ("star", 3)):
        rows = outcomes[(outcomes.cell == name) & (outcomes.iteration == n)]
        for outcome, column in (("initial", "initial"), ("correction", "corrected")):
            found = cells[name][outcome]
            assert close(found["value"], 100 * rows[column].mean())
            low, high, _ = crossed(table(rows, column), pools[column])
            assert close(found["low"], low) and close(found["high"], high), (name, outcome)
    m_0 = outcomes[(outcomes.cell == "EIE") & (outcomes.iteration == 0)]
    assert close(cells["zero-shot"]["initial"]["value"], 100 * m_0.initial.mean())
    assert close(cells["zero-shot"]["correction"]["value"], 100 * m_0.corrected.mean())
    star = table(outcomes.query("cell == 'star' and iteration == 3"), "initial")
    difference = table(outcomes.query("cell == 'EIE' and iteration == 3"), "corrected") - star
    (found,) = (one for one in report["differences"] if {one["first"], one["second"]} == {"EIE", "star"})
    assert dict(zip((found["first"], found["second"]), found["outcomes"], strict=True)) == {
        "EIE": "correction",
        "star": "initial",
    }
    sign = 1 if found["first"] == "EIE" else -1
    (seed, rest, df_seed, df_rest), (other_seed, other_rest, df_s, df_r) = pools["corrected"], pools["initial"]
    both = seed + other_seed, rest + other_rest, min(df_seed, df_s), min(df_rest, df_r)
    low, high = sorted(sign * bound for bound in crossed(difference, both)[:2])
    assert close(found["interval"]["value"], sign * difference.mean())
    assert close(found["interval"]["low"], low) and close(found["interval"]["high"], high)


def test_p_values_for_others_are_those_of_the_intervals_adjusted_by_holm(report: Any, last: pd.DataFrame) -> None:
    effects = {tuple(one["factors"]): one for one in report["effects"] if one["outcome"] == "correction"}
    for family in ([(name,) for name in PLUS], [*combinations(PLUS, 2), tuple(PLUS)]):
        raw = {}
        for factors in family:
            *_, raw[factors] = crossed(contrast(last, factors, "correction"), between(last, "correction"))
            assert close(effects[factors]["p_crossed"], raw[factors], within=1e-6), factors
        adjusted = 0.0
        for rank, factors in enumerate(sorted(family, key=lambda factors: raw[factors])):
            adjusted = max(adjusted, min(1, (len(family) - rank) * raw[factors]))
            assert close(effects[factors]["p_crossed_adjusted"], adjusted, within=1e-6), factors


def test_effects_are_the_contrasts_of_the_cells(report: Any, last: pd.DataFrame) -> None:
    expected = {
        (factors, outcome): contrast(last, factors, outcome)
        for size in (1, 2, 3)
        for factors in combinations(PLUS, size)
        for outcome in ("correction", "gain")
    }
    found = {(tuple(effect["factors"]), effect["outcome"]): effect for effect in report["effects"]}
    assert found.keys() == expected.keys()
    draw = np.random.default_rng(0)
    for key, table_QS in expected.items():
        effect = found[key]
        assert close(effect["interval"]["value"], table_QS.mean())
        low, high, _ = crossed(table_QS, between(last, key[1]))
        assert close(effect["interval"]["low"], low) and close(effect["interval"]["high"], high), key
        d_Q = table_QS.mean(1)
        flipped = (draw.choice([-1, 1], size=(10_000, len(d_Q))) * d_Q).mean(1)
        p = (abs(flipped) >= abs(d_Q.mean()) - 1e-12).mean()
        assert abs(effect["p"] - p) <= 5 * np.sqrt(2 * max(p * (1 - p), 1e-4) / 10_000), key


def test_the_headline_names_the_largest_of_the_main_effects(report: Any, last: pd.DataFrame) -> None:
    main = {name: abs(contrast(last, (name,), "correction").mean()) for name in PLUS}
    assert report["headline"].startswith(f"{max(main, key=lambda name: main[name])} matters most")


def test_the_readme_tells_what_the_report_does(report: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    effects = {(tuple(one["factors"]), one["outcome"]): one for one in report["effects"]}
    cells = {cell["name"]: cell for cell in report["cells"]}
    keep, both = effects[("filter",), "correction"], effects[("init", "filter"), "correction"]
    assert f"costs {-keep['interval']['value']:.1f} points" in readme
    assert f"[{-keep['interval']['high']:.1f}, {-keep['interval']['low']:.1f}]" in readme
    assert f"{keep['p_crossed_adjusted']:.3f} over questions and seeds" in readme
    assert f"{-both['raw']:.1f} points more" in readme
    assert f"{both['p_crossed_adjusted']:.3f} over questions and seeds" in readme
    (apart,) = (one for one in report["differences"] if (one["first"], one["second"]) == ("EIE", "star"))
    value, low, high = (apart["interval"][key] for key in ("value", "low", "high"))
    assert f"({value:+.1f} [{low:.1f}, {high:.1f}])" in readme
    assert f"[{both['interval']['low']:.1f}, {both['interval']['high']:.1f}]" in readme
    for name, outcome in (("EIE", "correction"), ("star", "initial")):
        interval = cells[name][outcome]
        assert f"{interval['value']:.1f} % [{interval['low']:.1f}, {interval['high']:.1f}]" in readme


def contrast(last: pd.DataFrame, factors: tuple[str, ...], outcome: str) -> NDArray[np.float64]:
    """The effect for each question and seed, in percentage points (Q, S)."""
    signs = {cell: np.prod([1 if level[name] else -1 for name in factors]) for cell, level in VARIANTS.items()}
    total: Any = 0
    for cell, sign in signs.items():
        rows = last[last.cell == cell]
        y_QS = table(rows, "corrected") - (table(rows, "initial") if outcome == "gain" else 0)
        total = total + sign * y_QS
    return total / 2 ** (len(PLUS) - 1)


def table(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    return 100 * rows.pivot_table(index="question", columns="seed", values=column).to_numpy(dtype=float)


def trained(outcomes: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The variants and baselines that were trained, at the last iteration."""
    return [(str(name), rows) for name, rows in outcomes[outcomes.iteration == 3].groupby("cell")]


Pool = tuple[float, float, float, float]  # mean squares of seeds and of the rest, and their degrees of freedom


def squares(table_QS: NDArray[np.float64]) -> tuple[float, float, float]:
    n, seeds = table_QS.shape
    mean, of_q, of_s = table_QS.mean(), table_QS.mean(1), table_QS.mean(0)
    rest = table_QS - of_q[:, None] - of_s[None] + mean
    return (
        seeds * ((of_q - mean) ** 2).sum() / (n - 1),
        n * ((of_s - mean) ** 2).sum() / (seeds - 1),
        (rest**2).sum() / ((n - 1) * (seeds - 1)),
    )


def within(tables: list[NDArray[np.float64]]) -> Pool:
    """Mean squares of seeds and of the rest within several tables of one size."""
    n, seeds = tables[0].shape
    _, of_s, of_qs = np.mean([squares(one) for one in tables], axis=0)
    return of_s, of_qs, len(tables) * (seeds - 1), len(tables) * (n - 1) * (seeds - 1)


def between(last: pd.DataFrame, outcome: str) -> Pool:
    """The same over all seven main effects and interactions."""
    return within([contrast(last, factors, outcome) for size in (1, 2, 3) for factors in combinations(PLUS, size)])


def crossed(table_QS: NDArray[np.float64], pool: Pool) -> tuple[float, float, float]:
    """The 95 % interval and the p-value of the mean with questions and seeds both random.

    By mean squares and Satterthwaite's df, of the table's own and of pooled seeds: the wider, and the larger.
    """
    n, seeds = table_QS.shape
    mean, (ms_q, ms_s, ms_qs) = table_QS.mean(), squares(table_QS)
    own = max(ms_q + ms_s - ms_qs, ms_q, ms_s), ms_s, ms_qs, seeds - 1, (n - 1) * (seeds - 1)
    pooled = ms_q + max(0, pool[0] - pool[1]), *pool
    halves, ps = [], []
    for v, of_s, of_qs, df_s, df_qs in (own, pooled):
        df = max(v**2 / (ms_q**2 / (n - 1) + of_s**2 / df_s + of_qs**2 / df_qs), min(df_s, n - 1))
        se = np.sqrt(v / (n * seeds))
        halves.append(student.ppf(0.975, df) * se)
        ps.append(2 * student.sf(abs(mean) / se, df))
    return mean - max(halves), mean + max(halves), max(ps)
