"""The report's page: it opens from disk without a network, shows the results, and never runs text of an answer."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pages import made
from playwright import sync_api as playwright
from skips import NO_CHROMIUM

from stasc.report import wording
from stasc.report.page import figures, samples
from stasc.report.page import html as page
from stasc.report.records import Analysis, Interval, Sweep

NASTY = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">{{7*7}}'\"&lt;"
EXAMPLE = Path(__file__).parents[2] / "multirun" / "smollm2_countries"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    page.write(*made(), folder)
    return folder


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every text from outside tries to run a script."""
    folder = tmp_path_factory.mktemp("nasty")
    sweep, analysis = made(factors=1, seeds=(0, 1), n=1, questions=3, text=NASTY)
    cells = {f"{name}{NASTY}": levels for name, levels in sweep.cells.items()}
    status = {0: "finished", 1: f"failed{NASTY}"}
    runs = tuple(replace(run, cell=f"{run.cell}{NASTY}", error=NASTY, status=status[run.seed]) for run in sweep.runs)
    curves = {f"{name}{NASTY}": curve for name, curve in analysis.curves.items()}
    effects = tuple(replace(one, label=f"{one.label}{NASTY}", sentence=NASTY) for one in analysis.effects)
    analysis = replace(
        analysis, headline=NASTY, notes=(NASTY,), curves=curves, effects=effects, provenance={NASTY: {NASTY: [NASTY]}}
    )
    page.write(replace(sweep, name=NASTY, cells=cells, runs=runs), analysis, folder)
    return folder


class Scripts(HTMLParser):
    """The start tags of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._within = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag == "script"
        self.scripts += [""] * self._within

    def handle_endtag(self, tag: str) -> None:
        self._within = False

    def handle_data(self, data: str) -> None:
        if self._within:
            self.scripts[-1] += data


def unpacked(block: str) -> dict[str, Any]:
    return json.loads(gzip.decompress(base64.b64decode(block)))  # type: ignore[no-any-return]


def test_the_page_refers_to_nothing_outside_its_folder(written: Path) -> None:
    for tag, attributes in Scripts((written / "report.html").read_text()).tags:
        for name in ("src", "href"):
            place = attributes.get(name) or "#"
            assert place.startswith(("#", "data:")) or (written / place).is_file(), (tag, place)


def test_each_chart_is_there_as_svg_and_png(written: Path) -> None:
    names = {"effects", "interactions", "trajectories", "curves", "transitions"}
    assert {path.stem for path in (written / "figures").glob("*.svg")} == names
    for name in names:
        assert (written / "figures" / f"{name}.svg").read_text().startswith("<svg")
        assert (written / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_for_papers_have_colours_that_colour_blind_readers_tell_apart(written: Path) -> None:
    curves = (written / "figures" / "curves.svg").read_text()
    assert "#0072B2" in curves and "#D55E00" in curves
    assert "var(" not in curves


def test_options_that_no_run_has_are_told_on_the_first_screen(written: Path) -> None:
    sweep, analysis = made()
    whole = page.summarise(sweep, analysis)
    assert (whole.incomplete, whole.combinations) == ([], "in every combination, with 3 seeds each")
    told = page.summarise(replace(sweep, absent=("no run has filter=lenient",)), analysis)
    assert told.incomplete == ["no run has filter=lenient"]
    assert told.combinations == "planned in every combination, with 3 seeds each; some of these runs are incomplete"


def with_settings(sweep: Sweep, *several: dict[str, Any]) -> Sweep:
    """Returns the sweep with these settings for its first runs, and none for the others."""
    empty: dict[str, Any] = {}
    settings = [*several, *[empty] * (len(sweep.runs) - len(several))]
    return replace(sweep, runs=tuple(replace(run, settings=one) for run, one in zip(sweep.runs, settings, strict=True)))


def test_the_lead_names_the_model_if_there_is_one_and_teaching_if_there_was_any() -> None:
    sweep, analysis = made()
    one, other = {"model": {"path": "hub/one"}}, {"model": {"path": "hub/other"}}
    assert page.summarise(with_settings(sweep, one, one), analysis).setting.startswith(
        "one was trained for 3 iterations"
    )
    assert page.summarise(with_settings(sweep, one, other), analysis).setting.startswith(
        "Each of several models was trained"
    )
    told = page.summarise(with_settings(sweep, one), replace(analysis, n=0)).setting
    assert told.startswith("one, without training, answered ") and "trained" not in told


def test_a_folder_of_baselines_alone_has_its_settings_from_them() -> None:
    sweep, _ = made()
    baseline = replace(sweep.runs[0], settings={"correct_at": 0.5})
    assert page.correct_at(replace(with_settings(sweep), baselines=(baseline,))) == 0.5


def test_every_chart_says_in_words_what_it_shows(written: Path) -> None:
    tags = Scripts((written / "report.html").read_text()).tags
    images = [attributes["aria-label"] or "" for _, attributes in tags if attributes.get("role") == "img"]
    assert len(images) == 5
    assert any("filter: lenient instead of strict" in text and "−1.4 [−4.4, +1.6]" in text for text in images)


def test_no_text_from_outside_becomes_markup(nasty: Path) -> None:
    html = (nasty / "report.html").read_text()
    plain = Scripts(html)
    assert {tag for tag, attributes in plain.tags if any(name.startswith("on") for name in attributes)} == set()
    assert sum(tag == "script" for tag, _ in plain.tags) == len(plain.scripts)
    assert not any(attributes.get("src") == "x" for _, attributes in plain.tags)
    assert "49" not in re.findall(r"<h1[^>]*>(.*?)</h1>", html, re.S)[0]
    data = next(text for text in plain.scripts if text.startswith("{"))
    assert any(NASTY in question["text"] for question in json.loads(data)["samples"]["questions"])


def test_only_the_page_s_own_script_may_run(written: Path) -> None:
    html = (written / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy and "default-src 'none'" in policy[1] and "unsafe-eval" not in policy[1]
    allowed = re.search(r"script-src ([^;]*)", policy[1])
    assert allowed and "unsafe-inline" not in allowed[1]


def test_blocks_hold_the_answers_as_they_were_sampled() -> None:
    sweep, _ = made(factors=1, seeds=(0, 3), n=2, questions=4, text=" \u2028é</script>\n")
    packed = samples.pack(sweep, n=2)
    assert set(packed.blocks) == {
        *(("test", seed, n) for seed in (0, 3) for n in (0, 1, 2)),
        *(("train", seed, n) for seed in (0, 3) for n in (1, 2)),
    }
    found = set()
    for (kind, seed, n), block in packed.blocks.items():
        rows = unpacked(block)
        for i, cell in enumerate(rows["cell"]):
            texts = rows["texts"][rows["y1"][i]], rows["texts"][rows["y2"][i]]
            asked = packed.index["questions"][rows["question"][i]]["id"]
            found.add((kind, packed.index["cells"][cell], seed, n, asked, *texts, rows["r1"][i], rows["r2"][i]))
    wanted = {
        (kind, run.cell, run.seed, row.n, row.question, row.y1, row.y2, row.r1, row.r2)
        for run in sweep.runs
        for kind, frame in (("test", run.outcomes), ("train", run.pairs()))
        for row in frame.itertuples()
    }
    assert found == wanted


def test_what_does_not_fit_is_left_out_and_said() -> None:
    sweep, _ = made(factors=1, seeds=(0, 1), n=2, questions=30)
    whole = samples.pack(sweep, n=2)
    assert not whole.left_out
    size = sum(map(len, whole.blocks.values()))
    part = samples.pack(sweep, n=2, budget=size // 2)
    assert sum(map(len, part.blocks.values())) <= size // 2
    assert ("test", 0, 2) in part.blocks and ("test", 1, 1) not in part.blocks
    assert any("test answers of" in text and "seed 1" in text and "outcomes.jsonl" in text for text in part.left_out)


def test_a_block_too_large_for_a_browser_has_the_first_questions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, _ = made(factors=1, seeds=(0,), n=1, questions=30)
    monkeypatch.setattr(samples, "BLOCK_CHARACTERS", 1000)
    packed = samples.pack(sweep, n=1)
    rows = unpacked(packed.blocks["test", 0, 1])
    asked = {packed.index["questions"][i]["id"] for i in rows["question"]}
    assert "test/0" in asked and len(asked) < 30
    assert all(sum(map(len, unpacked(block)["texts"])) <= 1000 for block in packed.blocks.values())
    assert any("of some questions" in text for text in packed.left_out)


@pytest.mark.parametrize(
    ("option", "r1", "r2", "kept", "told"),
    [
        ("Strict", 0.0, 1.0, True, "the correction is better: r2 − r1 = 1"),
        ("Strict", 1.0, 1.0, False, "not better by more than 0: r2 − r1 = 0"),
        ("Lenient", 1.0, 1.0, True, "right, and still right"),
        ("Lenient", 0.0, 0.0, False, "wrong, and not better: r2 − r1 = 0"),
        ("Lenient", 1.0, 0.0, False, "right, and made worse: r2 − r1 = -1"),
        ("Maintaining", 0.0, 1.0, False, "the initial answer is not right"),
        ("Maintaining", 1.0, 1.0, True, "right, and still right"),
    ],
)
def test_a_pair_s_reason_is_that_of_the_filter(option: str, r1: float, r2: float, kept: bool, told: str) -> None:
    settings = {"filter": {"_target_": f"stasc.choices.filter.{option}", "margin": 0.0, "correct_at": 1.0}}
    assert samples.reason(settings, r1, r2, kept) == told


def test_a_filter_of_the_user_s_own_gives_no_reason() -> None:
    assert samples.reason({"filter": {"_target_": "mine.keep"}}, 0.0, 1.0, False) == "left out by the run's own rule"


def test_a_sweep_without_effects_shows_its_curves_first(tmp_path: Path) -> None:
    sweep, analysis = made(factors=0)
    page.write(sweep, analysis, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert html.index('data-chart="curves"') < html.index('id="variants"')
    assert 'data-chart="effects"' not in html


def test_incomplete_runs_are_named_on_the_first_screen(tmp_path: Path) -> None:
    sweep, analysis = made(factors=1)
    runs = (replace(sweep.runs[0], status="failed"), *sweep.runs[1:])
    page.write(replace(sweep, runs=runs), analysis, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "1 run incomplete:" in html
    assert html.index(f"failed: {runs[0].name}") < html.index('id="effects"')


def test_many_incomplete_runs_are_counted_on_the_first_screen(tmp_path: Path) -> None:
    sweep, analysis = made(factors=2)
    runs = (*(replace(run, status="missing") for run in sweep.runs[:7]), *sweep.runs[7:])
    page.write(replace(sweep, runs=runs), analysis, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "7 runs incomplete:</b> missing: 7." in html


def test_every_run_and_every_two_variants_have_a_line(written: Path) -> None:
    html = (written / "report.html").read_text()
    labels = {
        label: html[html.index(f'aria-label="{label}') :] for label in ("Changes by corrections", "Differences between")
    }
    rows = {label: text[: text.index("</table>")].count('<th scope="row">') for label, text in labels.items()}
    assert rows == {"Changes by corrections": 8 * 3, "Differences between": 8 * 7 / 2}


def test_seeds_that_have_not_run_yet_are_no_samples(tmp_path: Path) -> None:
    sweep, analysis = made(factors=1)
    analysis = replace(analysis, cells=tuple(replace(cell, seeds=(0,)) for cell in analysis.cells))
    page.write(sweep, analysis, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "Each variant has one seed" in html and "thin lines are single seeds" not in html


def test_the_headline_s_claims_stand_apart_from_what_they_rest_on() -> None:
    _, analysis = made(factors=1)
    one = analysis.effects[0]
    told = page.parted(f"init matters: {one.sentence}. But it depends: {one.sentence}. More.", analysis.effects)
    rests = (f"{one.sentence}.", True)
    assert told == [("init matters:", False), rests, ("But it depends:", False), rests, ("More.", False)]
    assert page.parted("EIE is 60 % right.", analysis.effects) == [("EIE is 60 % right.", False)]


def test_an_interval_without_bounds_is_its_estimate(tmp_path: Path) -> None:
    open_ended = Interval(4.0, None, None, "one seed, one question")
    assert wording.interval_text(open_ended, signed=True) == "+4.0"
    sweep, analysis = made(factors=1)
    page.write(sweep, without_bounds(analysis, open_ended), tmp_path)
    assert (tmp_path / "report.html").is_file()


def without_bounds(analysis: Analysis, interval: Interval) -> Analysis:
    effects = tuple(replace(one, interval=interval, simultaneous=interval, se_seed=None) for one in analysis.effects)
    curves = {
        name: tuple(replace(cell, correction=interval) for cell in curve) for name, curve in analysis.curves.items()
    }
    cells = tuple(replace(cell, correction=interval, pairs=0.0) for cell in analysis.cells)
    return replace(analysis, effects=effects, curves=curves, cells=cells, noise_floor={})


@pytest.mark.parametrize(("value", "text"), [(-3.14, "−3.1"), (0.04, "+0.0"), (-0.04, "+0.0"), (2.0, "+2.0")])
def test_numbers_have_a_true_minus_and_no_negative_zero(value: float, text: str) -> None:
    assert wording.typeset(wording.number(value, signed=True)) == text


def test_prose_escapes_and_sets_numbers_well() -> None:
    told = page.prose("<b> -3.1 pp [-5.9, -0.4] over M_0 in EIE-seed0, 3.0-4")
    assert told == "&lt;b&gt; −3.1\u00a0pp [−5.9, −0.4] over M<sub>0</sub> in EIE-seed0, 3.0-4"


def test_charts_are_valid_for_the_vega_lite_that_the_page_brings() -> None:
    sweep, analysis = made()
    for spec in figures.specifications(sweep, analysis).values():
        assert figures.VEGA_LITE.removeprefix("v") in spec["$schema"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Opens a page without a network, waits until it is ready, and finally checks that the browser logged nothing."""
    opened, complaints = [], []

    def visit(folder: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce"
        )
        opened.append(context)
        shown = context.new_page()
        shown.set_default_timeout(60_000)
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto((folder / "report.html").as_uri())
        shown.wait_for_selector("html[data-ready]")
        return shown

    yield visit
    for context in opened:
        context.close()
    assert complaints == []


def found(shown: Any, count: int | str) -> None:
    """Waits until the list of answers has found this many pairs."""
    shown.locator("#found", has_text=re.compile(rf"^{count} pairs match")).wait_for()


def to_samples(shown: Any) -> None:
    shown.evaluate("document.getElementById('samples').scrollIntoView()")
    shown.wait_for_selector("#samples-table tbody .answer")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_charts_are_drawn(visit: Any, written: Path, scheme: str) -> None:
    shown = visit(written, scheme=scheme)
    for name in ("effects", "interactions", "trajectories", "curves", "transitions"):
        shown.evaluate(f"document.querySelector('[data-chart={name}]').scrollIntoView()")
        shown.wait_for_selector(f"[data-chart={name}][data-drawn] svg")
    assert shown.locator("[data-chart=effects] svg .mark-symbol path").count() == 6  # 3 choices, 2 outcomes
    bars = shown.locator("[data-chart=transitions] svg .mark-rect.role-mark path")
    assert bars.count() == 8 * 4 * 4  # variants, iterations, transitions


@pytest.mark.slow
def test_the_finished_example_opens_and_its_browser_finds_answers(visit: Any) -> None:
    shown = visit(EXAMPLE)
    assert "filter matters most" in shown.locator("h1").first.inner_text()
    for name in ("effects", "interactions", "trajectories", "curves", "transitions"):
        shown.evaluate(f"document.querySelector('[data-chart={name}]').scrollIntoView()")
        shown.wait_for_selector(f"[data-chart={name}][data-drawn] svg")
    to_samples(shown)
    outcomes = pd.read_json(EXAMPLE / "outcomes.jsonl.gz", lines=True)
    spoiled = outcomes.query("cell == 'EIE' and seed == 0 and iteration == 3 and initial == 1 and corrected == 0")
    shown.select_option("[name=variant]", "EIE")
    shown.select_option("[name=transition]", "right_wrong")
    found(shown, len(spoiled))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "section"), [(1280, "samples"), (1280, "method"), (400, "variants"), (400, "method")]
)
def test_a_link_to_a_section_leads_there_though_sections_grow(visit: Any, width: int, section: str) -> None:
    shown = visit(EXAMPLE, width=width)
    shown.locator(f"nav a[href='#{section}']").click()
    shown.wait_for_timeout(2500)
    top = f"document.getElementById('{section}').getBoundingClientRect().top"
    at_end = "innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
    assert 0 <= shown.evaluate(top) < 150 or shown.evaluate(at_end)


@pytest.mark.slow
def test_the_theme_is_the_system_s_until_it_is_switched(visit: Any, written: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(written), visit(written, scheme="dark")
    colours = light.evaluate(paper), dark.evaluate(paper)
    assert colours[0] != colours[1]
    light.click("#theme")
    assert light.evaluate(paper) == colours[1]
    light.click("#theme")
    assert light.evaluate(paper) == colours[0]


@pytest.mark.slow
def test_tables_are_sorted_by_a_click_on_a_head(visit: Any, written: Path) -> None:
    shown = visit(written)
    column = "[...document.querySelectorAll('#variants table tbody tr')].map(row => row.cells[5].dataset.order)"
    head = shown.locator("#variants table").first.locator("thead th").nth(5)
    for order in ("ascending", "descending"):
        head.click()
        shown.wait_for_selector(f"#variants th[aria-sort={order}]")
    values = [float(value) for value in shown.evaluate(column)[:8]]
    assert values == sorted(values, reverse=True)


@pytest.mark.slow
def test_the_browser_finds_what_its_filters_ask_for(visit: Any, written: Path) -> None:
    sweep, _ = made()
    shown = visit(written)
    to_samples(shown)
    found(shown, 8 * 20)  # the first seed's declared iteration
    shown.select_option("[name=seed]", "")
    shown.select_option("[name=n]", "")
    found(shown, f"{8 * 3 * 4 * 20:,}")
    run = next(run for run in sweep.runs if run.seed == 1)
    shown.select_option("[name=variant]", run.cell)
    shown.select_option("[name=seed]", "1")
    found(shown, 4 * 20)
    rows = run.outcomes
    shown.select_option("[name=transition]", "wrong_right")
    found(shown, int(((rows.r1 == 0) & (rows.r2 == 1)).sum()))
    shown.select_option("[name=transition]", "")
    shown.fill("[name=question]", "test/7")
    found(shown, 4)
    shown.fill("[name=question]", "")
    word = rows.y1[0].split()[0]
    shown.fill("[name=text]", word)
    found(shown, int((rows.y1.str.contains(word) | rows.y2.str.contains(word)).sum()))
    shown.fill("[name=text]", "")
    shown.select_option("[name=kind]", "train")
    found(shown, 3 * 6)
    shown.select_option("[name=kept]", "1")
    pairs = run.pairs()
    found(shown, int(pairs.kept.sum()))
    assert "the correction is better" in shown.locator("#samples-table tbody tr").first.inner_text()


@pytest.mark.slow
def test_no_text_from_outside_runs(visit: Any, nasty: Path) -> None:
    shown = visit(nasty)
    to_samples(shown)
    assert "taken" in shown.locator("#samples-table tbody tr").first.inner_text()  # it is shown as it is
    for name in ("effects", "curves", "transitions"):
        shown.evaluate(f"document.querySelector('[data-chart={name}]').scrollIntoView()")
        shown.wait_for_selector(f"[data-chart={name}][data-drawn] svg")
    shown.locator("[data-chart=curves] svg .mark-symbol path").first.hover(force=True)
    assert shown.title() != "taken"
    assert shown.locator("img[onerror]").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768])
def test_a_small_screen_needs_no_sideways_scrolling(visit: Any, written: Path, width: int) -> None:
    for folder in (written, EXAMPLE):
        shown = visit(folder, width=width)
        to_samples(shown)
        shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert shown.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_large_sweep_is_a_page_that_opens_at_once(visit: Any, tmp_path: Path) -> None:
    page.write(*large(), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 20e6
    shown = visit(tmp_path)
    assert shown.evaluate("performance.now()") < 3000  # milliseconds since it began to open; it is ready
    to_samples(shown)
    found(shown, "8,000")
    assert "Left out to keep the page small" in shown.locator("#left-out").inner_text()


def large() -> tuple[Sweep, Analysis]:
    """16 variants, 5 seeds, 10 iterations, 500 questions, of texts that hardly shrink."""
    return made(factors=4, seeds=range(5), n=10, questions=500, words=12)
