"""Weights that no run still needs are dropped, no others; and what was dropped can be derived again."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fake_lm import fake_experiment, results, run_fake, use_fakes
from test_run import experiment, lines
from test_store import computed, stages

from stasc.machine.sealed import read_sealed, write_sealed
from stasc.runs import execute as runner
from stasc.runs import prepare
from stasc.runs.experiment import Experiment
from stasc.runs.prepare import Prepared
from stasc.store import housekeeping, leases
from stasc.store.artifacts import OtherVersion, Store
from stasc.store.plan import Step
from stasc.sweeps import foresee
from stasc.tracking.console import Console

composed = cache(fake_experiment)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where runs load no model."""
    use_fakes(monkeypatch, folder / "base")
    return folder


def weights(folder: Path) -> set[str]:
    return {path.name for path in (folder / "store" / "model").glob("*")}


def made(run: Path) -> list[str]:
    """The keys of M_1, M_2, ... that a run came to."""
    return list(dict.fromkeys(key for kind, key, _ in stages(run) if kind == "finetune"))


def kept(run: Path) -> list[int]:
    """Pairs kept in iterations 1, 2, ..."""
    counts: dict[int, int] = {}
    for line in lines(run / "pairs.jsonl"):
        counts[line["n"]] = counts.get(line["n"], 0) + line["kept"]
    return list(counts.values())


def prepared(built: Experiment, folder: Path) -> Prepared:
    return prepare.prepare(replace(built, store=replace(built.store, dir=str(folder / "store"))))


def test_last_leaves_the_weights_of_the_final_model_and_all_leaves_all(folder: Path) -> None:
    for keep, models in (("last", 1), ("all", 3)):
        run_fake(composed("iterations=3", f"store.keep_models={keep}"), folder / keep / "run")
        assert len(made(folder / keep / "run")) == 3
        assert weights(folder / keep) == set(made(folder / keep / "run")[-models:])
    assert results(folder / "last" / "run") == results(folder / "all" / "run")


@pytest.mark.parametrize("start", ["fixed", "evolving"])
@pytest.mark.parametrize("init", ["fixed", "evolving"])
def test_a_finished_run_leaves_one_model_whatever_the_variant(init: str, start: str, folder: Path) -> None:
    run_fake(composed("iterations=3", f"init={init}", f"start={start}"), folder / "run")
    assert weights(folder) == {made(folder / "run")[-1]}
    assert len([stage for stage in stages(folder / "run") if stage[0] == "model" and not stage[2]]) == 3, "each once"


def test_dropped_weights_are_derived_again_bit_for_bit_when_a_longer_run_needs_them(folder: Path) -> None:
    """M_3 starts from M_2, which starts from M_1."""
    longer = composed("iterations=3", "start=evolving")
    expected = run_fake(longer, folder / "alone" / "run")
    run_fake(composed("iterations=2", "start=evolving"), folder / "short")
    m_1, m_2 = made(folder / "short")
    assert weights(folder) == {m_2}
    before = (folder / "store" / "model" / m_2 / "weights" / "model.safetensors").read_bytes()

    shutil.rmtree(folder / "store" / "model" / m_2)
    assert run_fake(longer, folder / "long") == expected
    again = {key for kind, key in computed(folder / "long") if kind == "model"}
    assert again == {m_1, m_2, made(folder / "long")[-1]}
    assert {kind for kind, key in computed(folder / "long") if key in (m_1, m_2)} == {"model"}
    assert weights(folder) == {m_2, made(folder / "long")[-1]}, "the short run's final model is its own"
    assert (folder / "store" / "model" / m_2 / "weights" / "model.safetensors").read_bytes() == before


def test_a_longer_run_takes_the_final_weights_of_a_shorter_one(folder: Path) -> None:
    run_fake(composed("iterations=2"), folder / "short")
    run_fake(composed("iterations=3"), folder / "long")
    assert {key for kind, key in computed(folder / "long") if kind == "model"} == {made(folder / "long")[-1]}


def test_weights_that_an_expected_run_needs_are_not_dropped(folder: Path) -> None:
    """It has the same M_1 and evaluates it otherwise."""
    colder = composed("iterations=2", "evaluation.temperature=0.1")
    foresee.expect(prepared(colder, folder), folder / "later")
    run_fake(composed("iterations=2"), folder / "run")
    assert weights(folder) == set(made(folder / "run"))
    run_fake(colder, folder / "later")
    assert made(folder / "later") == made(folder / "run")
    assert "model" not in {kind for kind, key in computed(folder / "later")}
    assert weights(folder) == {made(folder / "run")[-1]}, "now nobody needs M_1"


def test_weights_from_which_others_are_yet_to_be_derived_again_are_not_dropped(folder: Path) -> None:
    """The longer run needs M_2, which has gone, and so M_1; and of that M_1's own, which has not gone, no more."""
    short = composed("iterations=2", "start=evolving", "store.keep_models=all")
    run_fake(short, folder / "short")
    m_1, m_2 = made(folder / "short")
    store = Store(folder / "store", {})
    store.remove("model", m_2)
    foresee.expect(prepared(composed("iterations=3", "start=evolving"), folder), folder / "long")
    done = replace(prepared(short, folder).lease(folder / "short", "done"), keep_models="last", final="none")
    leases.write(store, done)
    assert leases.drop_unneeded(store, done, ()) == 0
    assert weights(folder) == {m_1}
    leases.remove(store, str(folder / "long"))
    assert leases.drop_unneeded(store, done, ()) > 0
    assert weights(folder) == set()


def test_what_a_run_has_yet_to_read(tmp_path: Path) -> None:
    steps = [Step("initial", "y", "m0"), Step("finetune", "m1", "m0"), Step("finetune", "m2", "m1")]
    steps += [Step("correction", "z", "m2"), Step("filter", "f", None)]

    def there(*names: str) -> list[str]:
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        for name in names:
            (tmp_path / "root" / name).mkdir(parents=True)
        return list(leases.to_read(tmp_path / "root", steps, "m2"))

    assert set(there()) == {"m0", "m1", "m2"}
    everything = ("initial/y", "finetune/m1", "finetune/m2", "correction/z", "filter/f")
    assert there(*everything, "model/m2") == ["m2"], "the final model"
    assert there(*everything) == ["m2", "m1", "m0"], "from which it is derived"
    assert there(*everything, "model/m1") == ["m2", "m1"]
    assert there(*everything[1:], "model/m2") == ["m2", "m0"], "and that of what is not there"


def test_no_weights_are_dropped_while_a_run_is_saying_what_it_needs(folder: Path) -> None:
    run_fake(composed("iterations=2", "store.keep_models=all"), folder / "run")
    store = Store(folder / "store", {})
    lease = replace(prepared(composed("iterations=2"), folder).lease(folder / "run", "done"), keep_models="last")
    leases.write(store, lease)
    with store.lock("leases", ""):
        thread = threading.Thread(target=leases.drop_unneeded, args=(store, lease, ()))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert len(weights(folder)) == 2
    thread.join(5)
    assert len(weights(folder)) == 1


def test_a_lease_of_another_version_is_refused_by_name(folder: Path) -> None:
    store = Store(folder / "store", {})
    leases.write(store, prepared(composed(), folder).lease(folder / "run", "running"))
    (path,) = (folder / "store" / "leases").iterdir()
    write_sealed(path, {**read_sealed(path), "schema": 3})
    with pytest.raises(OtherVersion, match=rf"{path} has schema 3, and this version of stasc reads 2"):
        list(leases.every(store))
    assert path.exists()


def test_what_a_crash_left_beside_leases_goes(folder: Path) -> None:
    left = folder / "store" / "leases" / ".tmp-ab12-lease.json"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    run_fake(composed("iterations=0"), folder / "run")
    assert not left.exists()


def test_weights_that_a_run_keeps_all_of_are_not_dropped_by_another(folder: Path) -> None:
    run_fake(composed("iterations=2", "store.keep_models=all"), folder / "all")
    run_fake(composed("iterations=2", "evaluation.temperature=0.1"), folder / "last")
    assert weights(folder) == set(made(folder / "all"))


def test_expecting_a_run_that_has_begun_changes_nothing(folder: Path) -> None:
    run_fake(composed(), folder / "run")
    foresee.expect(prepared(composed(), folder), folder / "run")
    (lease,) = leases.every(Store(folder / "store", {}))
    assert lease.status == "done"
    foresee.expect(prepared(composed("iterations=3"), folder), folder / "run")
    (lease,) = leases.every(Store(folder / "store", {}))
    assert lease.status == "expected", "another run"


@pytest.fixture
def with_an_empty_iteration(folder: Path) -> Experiment:
    """Its first iteration keeps nothing, and the later ones something."""
    for seed in range(100):
        small = composed("dataset.n_train=1", "sampling.n_corr=1", "iterations=3", "patience=2", f"seed={seed}")
        here = folder / "search" / str(seed)
        run_fake(small, here / "run")
        if [count > 0 for count in kept(here / "run")] == [False, True, True]:
            return small
    raise AssertionError("no seed does that")


@pytest.mark.parametrize("keep", ["last", "all"])
def test_after_an_empty_iteration_the_right_weights_are_kept(
    keep: str, with_an_empty_iteration: Experiment, folder: Path
) -> None:
    """From there on the run is another than was foreseen."""
    built = replace(with_an_empty_iteration, store=replace(with_an_empty_iteration.store, keep_models=keep))
    foreseen = {step.key for step in prepared(built, folder).steps}
    expected = run_fake(built, folder / "run")
    m_2, m_3 = made(folder / "run")
    assert not {m_2, m_3} & foreseen
    assert weights(folder) == ({m_3} if keep == "last" else {m_2, m_3})
    (lease,) = leases.every(Store(folder / "store", {}))
    assert (lease.status, lease.final) == ("done", m_3)
    assert {(step.kind, step.key) for step in lease.steps} == {
        (kind, key) for kind, key, _ in stages(folder / "run") if kind != "model"
    }

    assert housekeeping.main(["--dir", str(folder / "store"), "clean"]) == 0
    foresee.expect(prepared(built, folder), folder / "run")
    assert housekeeping.main(["--dir", str(folder / "store"), "clean"]) == 0
    (folder / "run" / "summary.json").unlink()
    assert run_fake(built, folder / "run") == expected
    assert computed(folder / "run") == set()


def test_a_run_that_stops_early_keeps_its_last_model_only(with_an_empty_iteration: Experiment, folder: Path) -> None:
    impatient = replace(with_an_empty_iteration, loop=replace(with_an_empty_iteration.loop, patience=1))
    run_fake(impatient, folder / "run")
    assert made(folder / "run") == []
    assert weights(folder) == set()
    (lease,) = leases.every(Store(folder / "store", {}))
    assert lease.final == prepared(impatient, folder).m_0.key
    assert (folder / "run" / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_where_nothing_is_ever_kept_the_final_model_is_m_0(finetune: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    built = experiment("iterations=2", "patience=2", f"finetune={finetune}")  # random weights earn no reward
    (tmp_path / "run").mkdir()
    runner.run(built, tmp_path / "run", "group", Console())
    assert kept(tmp_path / "run") == [0, 0]
    base = Path(prepared(built, tmp_path).live.base)
    ours, m_0 = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "run" / "model", base))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), m_0.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template
