"""The terminal shows bars and lines, the final table, and a verdict below it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as Terminal

from stasc.tracking.console import Console, Ended, final_table, iteration_line, verdict

CONTROL = "\x1b"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


def build(err: io.StringIO, clock: Clock | None = None, out: io.StringIO | None = None) -> Console:
    return Console(Terminal(file=out or io.StringIO(), width=80), Terminal(file=err, width=80), clock or Clock())


def evaluated(init_acc: float, corr_acc: float) -> dict[str, Any]:
    transitions = {"right_right": 0.25, "right_wrong": 0.082, "wrong_right": 0.1, "wrong_wrong": 0.568}
    return {"questions": 162, "init_acc": init_acc, "corr_acc": corr_acc, **transitions}


def summary_of(*iterations: dict[str, Any], status: str = "finished") -> dict[str, Any]:
    return {"status": status, "variant": "EIE", "seed": 7, "device": "cpu", "iterations": list(iterations)}


ZERO = {"n": 0, "test": evaluated(0.382, 0.281), "train": None, "finetune": None, "seconds": {"total": 8.21}}
ONE = {
    "n": 1,
    "test": evaluated(0.451, 0.642),
    "train": {"pairs": 384, "kept": 11},
    "finetune": {"loss": 0.8123, "steps": 2, "tokens": 90, "examples": 11},
    "seconds": {"total": 182.6},
}
IDLE = {
    "n": 2,
    "test": evaluated(0.451, 0.642),
    "train": {"pairs": 384, "kept": 0},
    "finetune": None,
    "seconds": {"total": 41},
}


def text_of(summary: dict[str, Any]) -> list[str]:
    file = io.StringIO()
    Terminal(file=file, width=80).print(final_table(summary))
    return file.getvalue().splitlines()


def words(line: str) -> str:
    return " ".join(line.split())


def test_without_a_terminal_a_short_stage_is_one_line_without_control_codes(clock: Clock) -> None:
    err = io.StringIO()
    with build(err, clock).stage("iteration 1  corrections", 192, "answers") as advance:
        for _ in range(12):
            clock.now += 2.0
            advance(16)
        clock.now = 41.9
    assert err.getvalue() == "iteration 1  corrections        192/192 answers  0:00:41\n"


def test_without_a_terminal_a_long_stage_reports_every_30_seconds_with_an_estimate(clock: Clock) -> None:
    err = io.StringIO()
    with build(err, clock).stage("iteration 1  corrections", 100, "answers") as advance:
        for _ in range(10):  # 10 answers in 10 seconds, so as many seconds are left as answers
            clock.now += 10.0
            advance(10)
    assert err.getvalue().splitlines() == [
        "iteration 1  corrections         30/100 answers  0:00:30, 0:01:10 left",
        "iteration 1  corrections         60/100 answers  0:01:00, 0:00:40 left",
        "iteration 1  corrections         90/100 answers  0:01:30, 0:00:10 left",
        "iteration 1  corrections        100/100 answers  0:01:40",
    ]


def test_the_first_batch_already_gives_an_estimate(clock: Clock) -> None:
    err = io.StringIO()
    with build(err, clock).stage("corrections", 100, "answers") as advance:
        clock.now = 40.0
        advance(20)
        assert err.getvalue().endswith("20/100 answers  0:00:40, 0:02:40 left\n")


def test_a_colour_variable_does_not_animate_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    err = io.StringIO()
    with build(err).stage("corrections", 2, "answers") as advance:
        advance(2)
    assert CONTROL not in err.getvalue()
    assert err.getvalue().count("\n") == 1


def test_a_terminal_that_is_dumb_gets_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    err = Tty()
    with build(err).stage("corrections", 2, "answers") as advance:
        advance(2)
    assert CONTROL not in err.getvalue()


def test_a_terminal_shows_a_bar_and_keeps_one_line_of_it() -> None:
    err = Tty()
    console = build(err)
    with console.stage("corrections", 192, "answers") as advance:
        advance(64)
        console._bars.refresh()
    seen = err.getvalue()
    assert "64/192 answers" in seen and "━" in seen
    last = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", seen).splitlines()[-1]
    assert last.strip() == "corrections                      64/192 answers  0:00:00"
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") == 1  # the cursor is hidden, then shown again


@pytest.mark.parametrize("err", [io.StringIO(), Tty()], ids=["file", "terminal"])
def test_stages_nest_and_follow_one_another(err: io.StringIO) -> None:
    console = build(err)
    for _ in range(2):
        with console.stage("outer", 2, "chunks") as outer:
            for _ in range(2):
                with console.stage("inner", 3, "answers") as inner:
                    inner(3)
                outer()
    lines = [line for line in err.getvalue().splitlines() if re.search(r"(3/3 answers|2/2 chunks ) *0:00:00 *$", line)]
    assert [re.search("inner|outer", line)[0] for line in lines] == ["inner", "inner", "outer"] * 2  # type: ignore[index]
    assert not console._bars.live.is_started


@pytest.mark.parametrize("err", [io.StringIO(), Tty()], ids=["file", "terminal"])
def test_an_exception_passes_through_a_stage_and_the_next_one_works(err: io.StringIO) -> None:
    console = build(err)
    with (
        pytest.raises(KeyError, match="boom"),
        console.stage("outer", 5, "steps"),
        console.stage("inner", 5, "steps") as advance,
    ):
        advance(3)
        raise KeyError("boom")
    with console.stage("next", 1, "steps") as advance:
        advance()
    shown = err.getvalue()
    assert re.search(r"inner +3/5 steps +0:00:00  stopped", shown)
    assert re.search(r"outer +0/5 steps +0:00:00  stopped", shown)
    assert re.search(r"next +1/1 step +0:00:00 *\n", shown)
    assert not console._bars.live.is_started


def test_a_stage_without_work_ends_well() -> None:
    err = io.StringIO()
    with build(err).stage("corrections", 0, "answers"):
        pass
    assert "0/0 answers" in err.getvalue()


@pytest.mark.parametrize("label", ["[bold]x[/bold]", "[/]", ":smile:", "{0}", "%s"])
def test_a_label_is_shown_as_it_is(label: str) -> None:
    for err in (io.StringIO(), Tty()):
        with build(err).stage(label, 1, "answers") as advance:
            advance()
        assert label in err.getvalue()


def test_the_table_has_a_row_per_iteration_and_percent_with_one_decimal() -> None:
    lines = text_of(summary_of(ZERO, ONE, IDLE))
    assert lines[0].strip() == "EIE, seed 7, cpu: 162 test questions, in %"
    assert lines[1].split() == ["right→", "right→", "wrong→", "wrong→"]
    assert words(lines[2]) == "iteration initial correction right wrong right wrong kept seconds"
    assert [words(line) for line in lines[4:]] == [
        "0 38.2 28.1 25.0 8.2 10.0 56.8 - 8.2",
        "1 45.1 64.2 25.0 8.2 10.0 56.8 11 / 384 183",
        "2 45.1 64.2 25.0 8.2 10.0 56.8 0 / 384 41",
    ]


def test_the_table_fits_80_columns_with_the_largest_numbers() -> None:
    large = {
        "n": 100,
        "test": {**evaluated(1.0, 1.0), "right_right": 1.0, "wrong_wrong": 1.0},
        "train": {"pairs": 48000, "kept": 12000},
        "finetune": None,
        "seconds": {"total": 123456.7},
    }
    lines = text_of(summary_of(ZERO, large))
    assert max(map(len, lines)) <= 80
    assert words(lines[-1]) == "100 100.0 100.0 100.0 8.2 10.0 100.0 12000 / 48000 123457"


def test_the_table_of_an_unfinished_run_says_so() -> None:
    assert text_of(summary_of(ZERO, status="failed"))[0].strip().startswith("EIE, seed 7, cpu, failed")
    assert text_of(summary_of(status="failed"))[0].strip() == "EIE, seed 7, cpu, failed"


def test_the_verdict_compares_the_last_iteration_with_both_answers_of_m_0() -> None:
    assert verdict(summary_of(ZERO, ONE)) == (
        "Correction accuracy 28.1 % -> 64.2 % (+36.1 pp over M_0's correction, +26.0 pp over M_0's initial answer), "
        "162 test questions."
    )


def test_the_verdict_of_a_run_without_training_has_the_votes_of_several_initial_answers() -> None:
    votes = {"samples": 16, "vote_k": 2, "vote_acc": 0.5, "vote_all_acc": 0.625, "pass_acc": 0.75}
    assert verdict(summary_of({**ZERO, "test": {**ZERO["test"], **votes}})).endswith(
        "162 test questions. Majority vote of 2 initial answers, which take the tokens of an answer and its "
        "correction: 50.0 %; of 16: 62.5 %; pass@16: 75.0 %."
    )


def test_the_verdict_gives_losses_a_minus_and_zero_a_plus() -> None:
    worse = {**ONE, "test": evaluated(0.3, 0.2808)}
    assert "(+0.0 pp over M_0's correction, -10.1 pp over M_0's initial answer)" in verdict(summary_of(ZERO, worse))


def test_the_verdict_of_a_run_without_training_claims_no_change() -> None:
    assert verdict(summary_of(ZERO)) == (
        "Without training: initial accuracy 38.2 %, correction accuracy 28.1 %, 162 test questions."
    )
    assert verdict(summary_of()) == "No iteration was evaluated."


def test_the_questions_are_called_by_their_split_and_one_is_no_more_than_one() -> None:
    out = io.StringIO()
    console = Console(Terminal(file=out, width=80), Terminal(file=io.StringIO(), width=80), Clock(), split="validation")
    console.final(summary_of(ZERO, ONE))
    shown = out.getvalue().splitlines()
    assert shown[0].strip() == "EIE, seed 7, cpu: 162 validation questions, in %"
    assert shown[-1].endswith("initial answer), 162 validation questions.")
    one = {**ZERO, "test": {**ZERO["test"], "questions": 1}}
    assert text_of(summary_of(one))[0].strip() == "EIE, seed 7, cpu: 1 test question, in %"
    assert verdict(summary_of(one)).endswith("correction accuracy 28.1 %, 1 test question.")


def test_a_stage_of_one_is_in_the_singular() -> None:
    err = io.StringIO()
    with build(err).stage("corrections", 1, "answers") as advance:
        advance()
    assert words(err.getvalue()) == "corrections 1/1 answer 0:00:00"


def test_in_a_sweep_a_run_that_was_complete_is_one_line_and_another_has_its_table() -> None:
    out = io.StringIO()
    console = Console(Terminal(file=out, width=80), Terminal(file=io.StringIO(), width=80), Clock(), brief=True)
    console.final(summary_of(ZERO, ONE))
    assert out.getvalue() == f"EIE, seed 7: {verdict(summary_of(ZERO, ONE))}\n"
    console.iteration(ONE)
    console.final(summary_of(ZERO, ONE))
    assert out.getvalue().splitlines()[1:-1] == [line.rstrip("\n") for line in text_of(summary_of(ZERO, ONE))]


def ended(folder: str, summary: dict[str, Any] | None = None, **settings: str) -> Ended:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return Ended(Path("multirun/six", folder).absolute(), given, summary, None if summary else f"OSError: {folder}")


def swept(*jobs: Ended, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(Terminal(file=out, width=width), Terminal(file=io.StringIO()), Clock()).sweep(jobs)
    return [words(line) for line in out.getvalue().splitlines()]


def test_the_table_of_a_sweep_shows_what_was_swept_and_where_the_results_are() -> None:
    assert swept(
        ended("EIE-seed0-a", summary_of(ZERO, ONE), model="tiny", filter="strict", finetune__learning_rate="1e-5"),
        ended("ENE-seed0-b", None, model="tiny", filter="lenient", finetune__learning_rate="1e-5"),
        ended("ENE-seed0-c", summary_of(ZERO), model="tiny", filter="lenient", finetune__learning_rate="2e-5"),
    ) == [
        "3 jobs, 1 failed; correction accuracy in %",
        "finetune.",
        "filter learning_rate status M_0 M_N gain folder",
        "─" * len("filter  learning_rate status   M_0  M_N  gain  folder     "),
        "strict 1e-5 finished 28.1 64.2 +36.1 EIE-seed0-a",
        "lenient 1e-5 failed - - - ENE-seed0-b",
        "lenient 2e-5 finished 28.1 28.1 +0.0 ENE-seed0-c",
        "ENE-seed0-b: OSError: ENE-seed0-b",
        "results: multirun/six",
    ]


def test_the_table_of_a_sweep_of_one_job_has_no_settings() -> None:
    shown = swept(ended("EIE-seed0-a", summary_of(ZERO, ONE), model="tiny"))
    assert shown[0] == "1 job; correction accuracy in %"
    assert shown[1] == "status M_0 M_N gain folder"


def test_no_cell_of_a_sweeps_table_is_cut_in_a_file() -> None:
    values = [f"a-rather-long-name-{i}" for i in range(2)]
    axes = ("init", "filter", "start", "reward")
    shown = swept(*(ended(f"EIE-{value}", summary_of(ZERO), **dict.fromkeys(axes, value)) for value in values))
    for row, value in zip(shown[3:5], values, strict=True):
        assert row == f"{' '.join([value] * 4)} finished 28.1 28.1 +0.0 EIE-{value}"


@pytest.mark.parametrize(
    ("iteration", "line"),
    [
        (ZERO, "iteration 0  initial 38.2 %  correction 28.1 %  before any training  0:00:08"),
        (ONE, "iteration 1  initial 45.1 %  correction 64.2 %  kept 11 / 384  loss 0.812  0:03:02"),
        (
            ONE | {"train": ONE["train"] | {"left_out_truncated": 7, "left_out_prompt": 0, "left_out_empty": 1}},
            "iteration 1  initial 45.1 %  correction 64.2 %  kept 11 / 384, left out 7 truncated, left out 1 empty  "
            "loss 0.812  0:03:02",
        ),
        (IDLE, "iteration 2  initial 45.1 %  correction 64.2 %  kept 0 / 384  not trained: M_2 = M_1  0:00:41"),
    ],
)
def test_an_iteration_is_reported_in_one_line(iteration: dict[str, Any], line: str) -> None:
    assert iteration_line(iteration) == line
    err = io.StringIO()
    build(err).iteration(iteration)
    assert err.getvalue() == line + "\n"


def test_results_go_to_standard_output_and_progress_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.stage("corrections", 1, "answers") as advance:
        advance()
    console.iteration(ONE)
    console.final(summary_of(ZERO, ONE))
    out, err = capsys.readouterr()
    assert "iteration" in out and verdict(summary_of(ZERO, ONE)) in out.splitlines()[-1]
    assert [line.split()[0] for line in err.splitlines()] == ["corrections", "iteration"]


def test_an_encoding_without_arrows_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console().final(summary_of(ZERO, ONE))
    sys.stdout.flush()
    assert b"right?" in raw.getvalue() and b"64.2" in raw.getvalue()
