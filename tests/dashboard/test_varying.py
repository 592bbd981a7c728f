"""The settings that vary among runs, from their folders and from W&B."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tracked import record

from stasc.dashboard.varying import check_settings, config_key, from_folders, from_wandb, varying


class FakeApi:
    """A W&B API with runs of these configs; None is a project that does not exist."""

    def __init__(self, *configs: dict[str, Any] | None) -> None:
        self.configs, self.asked = configs, {}  # type: ignore[var-annotated]

    def runs(self, path: str, **asked: Any) -> Iterator[SimpleNamespace]:
        self.asked = {"path": path, **asked}
        for config in self.configs:
            if config is None:
                raise ValueError("Could not find project stasc")
            yield SimpleNamespace(config=config)


def both(tmp_path: Path, *runs: tuple[dict[str, Any], dict[str, str]]) -> list[str]:
    """Returns what varies among runs with these settings and choices; folders and W&B must agree on it."""
    for number, (config, choices) in enumerate(runs):
        record(tmp_path / f"sweep-{len(runs)}" / str(number), config, choices)
    logged = [{**config, **{f"choice/{name}": option for name, option in choices.items()}} for config, choices in runs]
    found = varying(from_wandb(FakeApi(*logged), "me/stasc", None))
    assert varying(from_folders(tmp_path / f"sweep-{len(runs)}")) == found
    return found


def test_config_groups_vary_by_their_option_in_the_order_of_the_design(tmp_path: Path) -> None:
    options = [
        {"model": "tiny", "filter": "strict", "init": "fixed", "start": "fixed"},
        {"model": "qwen", "filter": "all", "init": "evolving", "start": "fixed"},
    ]
    assert both(tmp_path, *(({}, one) for one in options)) == ["init", "filter", "model"]


def test_settings_vary_but_not_those_that_follow_from_an_option(tmp_path: Path) -> None:
    runs = [
        ({"model": {"path": model}, "finetune": {"learning_rate": rate}}, {"model": model})
        for model in ("tiny", "qwen")
        for rate in (1e-5, 2e-5)
    ]
    assert both(tmp_path, *runs) == ["model", "finetune.learning_rate"]


def test_a_setting_that_only_some_options_have_varies_among_the_runs_that_have_it(tmp_path: Path) -> None:
    full, lora = {"finetune": "full"}, {"finetune": "lora"}
    of_rank = [({"finetune": {"rank": rank}}, lora) for rank in (8, 16)]
    assert both(tmp_path, ({"finetune": {}}, full), *of_rank) == ["finetune", "finetune.rank"]
    assert both(tmp_path, ({"finetune": {}}, full), of_rank[0]) == ["finetune"]


def test_seeds_names_places_and_versions_are_no_choices(tmp_path: Path) -> None:
    runs = [
        (
            {"seed": i, "variant": f"V{i}", "commit": f"c{i}", "device": f"gpu{i}", "versions/torch": f"2.{i}"}
            | {"store": {"dir": f"s{i}"}, "init": {"_target_": f"stasc.{i}", "letter": f"{i}"}},
            {"init": "fixed"},
        )
        for i in range(2)
    ]
    assert both(tmp_path, *runs) == []


def test_baselines_do_not_make_a_choice_vary(tmp_path: Path) -> None:
    method = ({"baseline": None, "target": {"_target_": "stasc.Correction"}}, {"init": "fixed", "filter": "strict"})
    gold = ({"baseline": "gold", "evaluation": {"n_init": 16}}, {"init": "evolving", "filter": "all"})
    assert both(tmp_path, method, gold) == []


def test_a_null_and_a_list_are_levels(tmp_path: Path) -> None:
    assert both(tmp_path, ({"sampling": {"stop": None}}, {}), ({"sampling": {"stop": ["A"]}}, {})) == ["sampling.stop"]


def test_w_and_b_is_asked_for_the_finished_runs_of_the_group() -> None:
    api = FakeApi({"choice/init": "fixed"})
    assert len(from_wandb(api, "me/stasc", "ablation")) == 1
    assert (api.asked["path"], api.asked["filters"]) == ("me/stasc", {"state": "finished", "group": "ablation"})
    assert not api.asked["lazy"], "each run's config would be another request"
    from_wandb(api, "me/stasc", None)
    assert api.asked["filters"] == {"state": "finished"}


def test_a_project_that_does_not_exist_has_no_runs() -> None:
    assert from_wandb(FakeApi(None), "me/stasc", None) == []


def test_unfinished_and_damaged_runs_in_a_folder_are_left_out(tmp_path: Path) -> None:
    for status in ("finished", "stopped_empty", "failed", "preempted"):
        record(tmp_path / status, {}, {"init": status}, status)
    record(tmp_path / "damaged", {}, {"init": "damaged"})
    journal = tmp_path / "damaged" / "journal.jsonl"
    journal.write_text(journal.read_text().replace("init", "Init", 1))
    assert [run["init"] for run in from_folders(tmp_path)] == ['"finished"', '"stopped_empty"']
    assert from_folders(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("setting", "key"),
    [("init", "choice/init"), ("baseline", "choice/baseline"), ("sampling.n_corr", "sampling.n_corr")],
)
def test_config_groups_have_their_option_under_a_key_of_its_own(setting: str, key: str) -> None:
    assert config_key(setting) == key


def test_any_setting_of_the_runs_can_be_asked_for(tmp_path: Path) -> None:
    record(tmp_path / "a", {"seed": 0, "variant": "EIE", "sampling": {"n_corr": 2}}, {"init": "fixed"})
    check_settings("--by", ["seed", "variant", "baseline", "init", "sampling.n_corr"], from_folders(tmp_path))
    with pytest.raises(ValueError, match=r"--by sampling\.n_cor: no such setting; did you mean sampling\.n_corr"):
        check_settings("--by", ["sampling.n_cor"], from_folders(tmp_path))
