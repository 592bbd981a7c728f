"""The benchmark: works, contenders and their protocol, figures, and the table."""

from __future__ import annotations

import importlib.util
import io
from mmap import mmap
from pathlib import Path

import pytest
from rich.console import Console
from skips import NO_PEER

from stasc.bench import ours, race, report
from stasc.bench.__main__ import WORKS, _options, arguments
from stasc.bench.contender import STILL, Done, Stage, Work, peak_bytes, read_work, reset_peak, useful, warm_up
from stasc.bench.figures import Needed, figures, needed, spread, tokens
from stasc.bench.race import Arena, Hello, Match, Outcome
from stasc.bench.works import Maker
from stasc.engines.engine import Completion, Request

SMALL = ("model=tiny", "dataset.n_train=3", "dataset.n_test=3", "sampling.max_new_tokens=4")
EARNABLE = ("~reward", "+reward={_target_: test_run.even_first_byte, _partial_: true}")


def work(**fields: object) -> Work:
    plain = {
        **{"name": "W", "title": "a work", "model": "", "overrides": [], "stages": [], "examples": []},
        **{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4, "stop_ids": [0], "epochs": 1, "batch_size": 8},
        **{"learning_rate": 1e-3, "max_grad_norm": 1.0, "seed": 0, "dtype": "float32"},
    }
    return Work(**{**plain, **fields})  # type: ignore[arg-type]


def reply(seconds: float, peak: int = 100, **fields: object) -> Done:
    return Done(
        **{"seconds": seconds, "peak_bytes": peak, "lengths": [], "followed": [3], "loss": None, "rates": {}, **fields}
    )  # type: ignore[arg-type]


RATES = {"layers_parameters": 50, "head_parameters": 10, "layers_flops_per_s": 100.0, "head_flops_per_s": 20.0}
HELLO = Hello(1.0, "as it is", {"torch": "2"})


def test_useful_tokens_end_with_the_first_stop_token() -> None:
    assert useful([5, 6, 0, 0, 0], [0, 9]) == 3
    assert useful([5, 9, 0], [0, 9]) == 2
    assert useful([5, 6, 7], [0, 9]) == 3
    assert useful([0], [0]) == 1


def test_a_work_file_gives_the_work_again(tmp_path: Path) -> None:
    made = work(stages=[Stage([[1, 2]], [[3, 4]])])
    made.write(tmp_path / "sub" / "work.json")
    assert read_work(tmp_path / "sub" / "work.json") == made


def test_a_warm_up_is_a_part_that_does_not_train() -> None:
    made = work(stages=[Stage([[1]] * 100, [[2]] * 100)], examples=[([1], [2])] * 100, epochs=9)
    part = warm_up(made)
    assert (len(part.stages[0].prompts), len(part.examples), part.epochs, part.learning_rate) == (32, 16, 1, STILL)


def test_what_sampling_needs_is_counted_once() -> None:
    # Two distinct prompts that begin with the same two tokens: 2 + 1 + 2; and 3 beginnings of answers.
    asked = Stage([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3]], [[7], [8], [9]])
    assert needed(work(stages=[asked]), [3]) == Needed(forward=2 + 1 + 2 + 3, logits=2 + 3)


def test_what_answers_to_a_prompt_begin_with_is_counted_once() -> None:
    requests = [Request((1, 2), (7, 8)), Request((3,), (9,)), Request((1, 2), (6,))]
    ids = [[(4, 5, 6), (4, 5)], [(4, 5, 6)], [(4, 7, 0)]]
    answers = [[Completion(one, truncated=False) for one in some] for some in ids]
    assert ours._followed(requests, answers) == len({(1, 2, 4), (1, 2, 4, 5), (3, 4), (3, 4, 5), (1, 2, 4, 7)})


def test_what_training_needs_is_each_prompt_once_an_epoch() -> None:
    examples = [([1, 2, 3], [4, 0]), ([1, 2, 3], [5, 6, 0]), ([9], [0])]
    trained = work(examples=examples, epochs=2)
    assert needed(trained, []) == Needed(forward=2 * (3 + 1 + 1 + 2 + 0), logits=2 * 6)
    assert tokens(trained, reply(1)) == 2 * (5 + 6 + 2)


def test_ratios_are_of_repetitions_that_followed_each_other() -> None:
    made = work(stages=[Stage([[1, 2]], [[3]])])
    ours = [reply(1, 50, lengths=[4]), reply(2, 50, lengths=[4]), reply(4, 50, lengths=[4])]
    theirs = [reply(3, lengths=[4]), reply(4, lengths=[2]), reply(4, lengths=[4])]
    outcome = Outcome(made, {"stasc": HELLO, "generate": HELLO}, limits=[reply(1, rates=RATES)] * 3)
    outcome.matches += [Match(r, "generate", *pair) for r, pair in enumerate(zip(ours, theirs, strict=True))]
    us, peer = figures(outcome, "stasc")
    assert peer.ratio == spread([3.0, 4.0, 1.0])
    assert (peer.ratio.median, peer.memory_ratio) == (3.0, 0.5)
    assert (us.ratio, us.speed.median, us.seconds.median) == (None, 2.0, 2)
    # Needed: 5 positions through 50 parameters, 4 logits from 10: 500 / 100 + 80 / 20 = 9 s.
    assert us.share == spread([9.0, 4.5, 2.25])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_since_the_reset() -> None:
    with mmap(-1, 300_000_000) as big:  # unlike freed memory, it returns to the system
        for _ in range(300):
            big.write(b"x" * 1_000_000)
        high = peak_bytes()
    reset_peak()
    assert peak_bytes() < high - 200_000_000


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("bench"), 1, {"generate": {"batch": "8"}})


@pytest.mark.slow
def test_contenders_race_on_works_of_the_default_run(arena: Arena) -> None:
    maker = Maker((*SMALL, *EARNABLE), None)
    sampling = maker.makers()["S1"]()
    assert [len(stage.prompts) for stage in sampling.stages] == [3, 6]
    assert [len(keys) for stage in sampling.stages for keys in stage.keys] == [2] * 9
    training = maker.makers()["T2"]()
    assert training.examples and not training.stages
    missing = race.Peer("missing", "stasc.bench.none", "none", trains=False)
    said: list[str] = []
    outcomes = [
        race.race(arena, sampling, [race.PEERS[0], missing], 2, said.append),
        race.race(arena, training, [], 1, said.append),
    ]
    grown = race.grow(arena, [sampling], 1, said.append)
    assert len(said) == 2 + 1 + 1
    assert list(outcomes[0].left_out) == ["missing"]
    for match in outcomes[0].matches:
        assert match.theirs
        for run in (match.ours, match.theirs):
            assert len(run.lengths) == 18
            later = [sum(part) - len(part) for part in (run.lengths[:6], run.lengths[6:])]  # of every row
            alike = [0 < some <= every for some, every in zip(run.followed, later, strict=run is match.ours)]
            assert alike == ([True] * 2 if run is match.ours else [])
            assert all(1 <= length <= 4 for length in run.lengths)
    assert outcomes[0].matches[0].ours.lengths == outcomes[0].matches[1].ours.lengths  # noise belongs to the question
    assert outcomes[1].matches[0].ours.loss

    made = report.tables(outcomes, grown, {"L": "it needs a file"})
    page = report.page(made, {"commit": "abc"})
    shown = io.StringIO()
    Console(file=shown, width=160).print(*made)
    for text in (page, shown.getvalue()):
        for word in ("Speed", "generate", "Left out", "missing", "it needs a file", "Growth", "Limit of the machine"):
            assert word in text
    speeds = made[0]
    assert [row[:2] for row in speeds.rows] == [["S1", "stasc"], ["S1", "generate"], ["T2", "stasc"]]
    assert {len(row) for row in speeds.rows} == {len(speeds.heads)}


@pytest.mark.slow
def test_a_contender_that_dies_is_left_out_with_its_last_words(arena: Arena) -> None:
    maker = Maker(SMALL, None)
    broken = Arena(arena.folder, 1, {"generate": {"dtype": "float99"}})
    outcome = race.race(broken, maker.makers()["S1"](), [race.PEERS[0]], 1, lambda text: None)
    assert "float99" in outcome.left_out["generate"]
    assert [match.theirs for match in outcome.matches] == [None]


@pytest.mark.slow
@pytest.mark.parametrize("peer", [peer for peer in race.PEERS if peer.venv], ids=lambda peer: peer.name)
def test_peers_do_the_works_of_their_kind(arena: Arena, peer: race.Peer) -> None:
    if importlib.util.find_spec(peer.name) is None:
        pytest.skip(f"{NO_PEER}: {peer.name} is not installed")
    maker = Maker((*SMALL, *EARNABLE), None)
    here = race.Peer(peer.name, peer.module, None, peer.trains)
    outcome = race.race(arena, maker.makers()["T2" if peer.trains else "S1"](), [here], 1, lambda text: None)
    assert not outcome.left_out
    assert outcome.matches[0].theirs


def test_long_answers_need_a_file() -> None:
    with pytest.raises(LookupError, match="gsm8k"):
        Maker(SMALL, None).makers()["L"]()


def test_the_command_line_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(arguments([]).only) == WORKS
    assert tuple(arguments(["--only", "S1,T1", "--peers", "trl"]).only) == ("S1", "T1")
    assert tuple(arguments(["--peers", ""]).peers) == ()
    with pytest.raises(SystemExit):
        arguments(["--only", "S9"])
    assert "expected some of S1" in capsys.readouterr().err
    assert _options(["vllm.dtype=float32"]) == {"vllm": {"dtype": "float32"}}
    with pytest.raises(SystemExit, match=r"PEER\.NAME=VALUE"):
        _options(["dtype=float32"])
