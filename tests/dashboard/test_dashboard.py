"""The dashboard: it shows metrics that runs log, and goes to W&B or to a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tracked import help_of, only, records_of

from stasc.dashboard import __main__ as dashboard
from stasc.dashboard.specification import check

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


def written(folder: Path, *options: str) -> dict[str, Any]:
    """Runs the command. Returns: the specification that it writes."""
    file = folder / "dashboard.json"
    dashboard.main(["stasc", "--output", str(file), *options])
    spec: dict[str, Any] = json.loads(file.read_text())
    return spec


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for grid in grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]]


def shown(spec: dict[str, Any]) -> dict[str, set[str]]:
    """Returns all metric names in a specification, by where W&B looks them up."""
    names: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set(), "table": set()}
    accessors = [name for grid in grids(spec) for one in grid["runSets"] for name in one["runFeed"]["columnOrder"]]
    for panel in panels(spec):
        config = panel["config"]
        accessors += [column["accessor"] for column in config.get("columns", ())]
        names["history" if "xAxis" in config else "summary"].update(config.get("metrics", ()))
        names["history"].update([config["xAxis"]] if "xAxis" in config else ())
        accessors += [f"config:{config['groupBy']}"] if config.get("groupBy", "jobType") != "jobType" else []
        names["table"].update(re.findall(r"'key': {[^}]*'val': '(\w+)'", str(config)))
    for accessor in accessors:
        kind, _, name = accessor.partition(":")
        if kind != "run":
            names[kind].add(name.removesuffix(".value"))
    return names


def test_every_name_that_it_shows_is_one_that_runs_log(mirrored: Path, tmp_path: Path) -> None:
    logged: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set()}
    for files in [*mirrored.glob("multirun/mirrored/*/wandb/offline-run-*"), *mirrored.glob("baseline/wandb/off*")]:
        records = records_of(files)
        logged["config"].update(*(part["config"]["update"] for part in only(records, "run")))
        logged["history"].update(*(part["item"] for part in only(records, "history")))
        logged["summary"].update(*(part["update"] for part in only(records, "summary")))
    names = shown(written(tmp_path))
    assert not set().union(*(names[kind] - logged[kind] for kind in logged))
    assert {f"{name}.path" for name in names["table"]} == {"pairs.path"} <= logged["history"]
    assert {"test/init_acc", "test/corr_acc", "iteration", "train/kept", "finetune/loss"} <= names["history"]
    assert {"final/corr_acc", "final/gain"} <= names["summary"]
    assert {f"choice/{name}" for name in ("init", "filter", "start", "finetune")} <= names["config"]


def test_curves_are_means_by_variant_with_bands_over_its_runs(tmp_path: Path) -> None:
    curves = [panel["config"] for panel in panels(written(tmp_path)) if "xAxis" in panel["config"]]
    assert len(curves) >= 2
    for curve in curves:
        assert (curve["xAxis"], curve["groupBy"], curve["groupAgg"], curve["groupArea"]) == (
            "iteration",
            "jobType",
            "mean",
            "minmax",
        )
        assert curve["limit"] > 16, "W&B shows 10 lines unless told otherwise; the ablation has 16 variants"


def test_both_outcomes_are_shown_by_each_choice(tmp_path: Path) -> None:
    bars = {
        (panel["config"]["groupBy"], *panel["config"]["metrics"])
        for panel in panels(written(tmp_path))
        if panel["viewType"] == "Bar Chart"
    }
    choices = ("init", "filter", "start", "finetune")
    assert {(f"choice/{c}.value", f"final/{o}") for c in choices for o in ("corr_acc", "gain")} <= bars


def test_no_two_plots_lie_on_each_other_and_none_is_wider_than_the_report(tmp_path: Path) -> None:
    for grid in grids(written(tmp_path)):
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        cells = [
            (place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])
        ]
        assert len({*cells}) == len(cells) and max(x for x, _ in cells) < 24


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ([], []),
        (["--group", "2026-11-23_01-02-03"], [({"section": "run", "name": "group"}, "=", "2026-11-23_01-02-03")]),
    ],
)
def test_a_group_is_what_all_of_it_is_filtered_to(options: list[str], filters: list[Any], tmp_path: Path) -> None:
    spec = written(tmp_path, *options)
    runsets = [one for grid in grids(spec) for one in grid["runSets"]]
    found = [[(part["key"], part["op"], part["value"]) for part in one["filters"]["filters"]] for one in runsets]
    assert found == [filters] * len(runsets) and runsets
    assert spec["displayName"] == ("STaSC 2026-11-23_01-02-03" if options else "STaSC all runs")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"Run History Line Plot"', '"Run Histroy Line Plot"'),
        ('"panel-grid"', '"panel-gird"'),
        ('"minmax"', '"min-max"'),
        ('"metrics"', '"metrix"'),
        ('"blocks"', '"blokcs"'),
        ("{", "["),
    ],
)
def test_a_specification_that_the_library_does_not_read_as_it_is_is_refused(
    before: str, after: str, tmp_path: Path
) -> None:
    text = json.dumps(written(tmp_path))
    check(text.encode())
    assert before in text
    with pytest.raises(ValueError, match="no W&B report: "):
        check(text.replace(before, after, 1).encode())


def test_without_a_login_a_file_is_written_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        dashboard.main(["stasc", "--group", "ablation"])
        told = capsys.readouterr().out.splitlines()
        assert told[0] == "written: dashboard-ablation.json" and "`wandb login`" in told[1]
    check((tmp_path / "dashboard-ablation.json").read_bytes())
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["dashboard-ablation.json"]


def test_no_other_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("seed: 0")
    with pytest.raises(SystemExit, match=f"error: {file} exists and is no W&B report"):
        dashboard.main(["stasc", "--output", str(file)])
    assert file.read_text() == "seed: 0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["me/stasc"], "error: PROJECT=me/stasc: expected 1 to 128 characters, none of /"),
        ([""], "error: PROJECT=: expected 1 to 128 characters"),
        (["stasc", "--group", "it's"], '--group="it\'s": expected a name'),
        (["stasc", "--entity", "a b"], "--entity='a b': expected a name"),
    ],
)
def test_a_name_that_can_be_none_is_refused(given: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        dashboard.main([*given, "--output", str(tmp_path / "file.json")])
    assert not (tmp_path / "file.json").exists()


def test_a_missing_library_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stasc.dashboard.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(SystemExit, match=r"wandb_workspaces\S* is not installed; pip install 'stasc\[dashboard\]'"):
        dashboard.main(["stasc", "--output", str(tmp_path / "file.json")])


def test_a_wandb_that_can_t_be_reached_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(dashboard, "SAVE_S", 2)  # W&B itself gives up after 20 s
    with pytest.raises(SystemExit, match=r"error: W&B did not accept the report .*; its specification is in the file"):
        dashboard.main(["stasc"])
    assert capsys.readouterr().out == "written: dashboard-stasc.json\n"
    check((tmp_path / "dashboard-stasc.json").read_bytes())


class Asked(BaseHTTPRequestHandler):
    """A fake W&B server whose user has no project yet. It keeps the reports that it receives."""

    reports: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        query = json.loads(body) if self.path == "/graphql" else {"query": "", "variables": {}}
        given, project = query.get("variables") or {}, {"id": "1", "name": "stasc", "entityName": "me"}
        view = {"id": "Vmlldzox", "type": "runs", "project": project, "updatedAt": "2026-01-01T00:00:00Z"}
        answer = {
            "viewer": {"id": "1", "entity": "me", "email": "", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}},
            "result": {"project": project, "model": project, "inserted": True},
            "upsertView": {"view": {**given, **view}, "inserted": True},
        }
        if "upsertView" in query["query"]:
            self.reports.append(given)
        data = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Asked.reports = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.mark.slow
def test_who_is_logged_in_gets_a_report_of_the_same_specification(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """Runs the whole command against a fake W&B server."""
    environment = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "k" * 40}
    ran = subprocess.run(
        [sys.executable, "-m", "stasc.dashboard", "stasc", "--group", "ablation"],
        env={**environment, "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"W&B report: http://127\.0\.0\.1:\d+/me/stasc/reports/STaSC-ablation--Vmlldzox\n", ran.stdout)
    (sent,) = Asked.reports
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("me", "stasc", "runs")
    assert without_ids(json.loads(sent["spec"])) == without_ids(written(tmp_path, "--group", "ablation")["spec"])


def without_ids(spec: Any) -> Any:
    """Returns a part of a specification without the random ids of the library."""
    if isinstance(spec, dict):
        return {name: without_ids(part) for name, part in spec.items() if name not in ("id", "__id__")}
    return [without_ids(part) for part in spec] if isinstance(spec, list) else spec


def test_the_help_imports_nothing_that_takes_long() -> None:
    assert "PROJECT" in help_of("stasc.dashboard", without={"wandb", "wandb_workspaces", "torch", "hydra"})
