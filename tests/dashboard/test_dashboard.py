"""The command: it makes a W&B report, or writes its specification to a file."""

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
from specified import bars, without_ids, written
from tracked import help_of, record

from stasc.dashboard import __main__ as dashboard
from stasc.dashboard.specification import check

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


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


def run_node(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a run as W&B answers it."""
    stored = {name: {"value": value} for name, value in {"_wandb": {}, **config}.items()}
    return {"id": "1", "name": "1", "tags": [], "state": "finished", "config": json.dumps(stored)}


class Asked(BaseHTTPRequestHandler):
    """A fake W&B server that has runs of these configs; without any, there is no project yet. It keeps reports."""

    reports: list[dict[str, Any]]
    configs: list[dict[str, Any]]
    filters: dict[str, Any]

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
        if "query Runs(" in query["query"]:
            Asked.filters = json.loads(given["filters"])
            edges = [{"node": run_node(config), "cursor": ""} for config in self.configs]
            answer["project"] = {"runs": {"edges": edges, "pageInfo": {}}} if edges else None
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
    Asked.reports, Asked.configs = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def against(server: ThreadingHTTPServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the whole command, logged in at the server."""
    environment = {**os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "k" * 40}
    return subprocess.run(
        [sys.executable, "-m", "stasc.dashboard", "stasc", *options],
        env={**environment, "PYTHONPATH": ":".join(sys.path)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_who_is_logged_in_gets_a_report_of_the_same_specification(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    ran = against(server, tmp_path, "--group", "ablation")
    assert ran.returncode == 0, ran.stderr
    hint, url = ran.stdout.splitlines()
    assert hint == "W&B has no finished runs in the group ablation yet: the report shows them once they finish"
    assert re.fullmatch(r"W&B report: http://127\.0\.0\.1:\d+/me/stasc/reports/STaSC-ablation--Vmlldzox", url)
    (sent,) = Asked.reports
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("me", "stasc", "runs")
    assert without_ids(json.loads(sent["spec"])) == without_ids(written(tmp_path, "--group", "ablation")["spec"])


@pytest.mark.slow
def test_who_is_logged_in_gets_bars_for_what_varies_in_w_and_b(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    config = {"choice/init": "fixed", "seed": 0, "sampling": {"n_corr": 1}}
    Asked.configs = [config, {**config, "seed": 1}, {**config, "sampling": {"n_corr": 2}}]
    ran = against(server, tmp_path, "--group", "ablation")
    assert ran.returncode == 0 and ran.stdout.startswith("W&B report: "), ran.stderr
    assert Asked.filters == {"state": "finished", "group": "ablation"}
    (sent,) = Asked.reports
    assert {key for _, key in bars({"spec": json.loads(sent["spec"])})} == {"sampling.value.n_corr"}
    ran = against(server, tmp_path, "--by", "n_corr")
    assert (ran.returncode, ran.stderr) == (
        1,
        "error: --by n_corr: no such setting; did you mean sampling.n_corr?\n",
    )


@pytest.mark.slow
def test_folders_come_before_w_and_b_only_if_they_are_given(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    for seed, start in enumerate(("fixed", "evolving")):
        record(tmp_path / "multirun" / "ablation" / start, {"seed": seed}, {"start": start})
    for configs, options, key in (
        ([], [], "choice/start.value"),
        ([{"choice/init": "fixed"}, {"choice/init": "evolving"}], [], "choice/init.value"),
        (
            [{"choice/init": "fixed"}, {"choice/init": "evolving"}],
            ["--runs", "multirun/ablation"],
            "choice/start.value",
        ),
    ):
        Asked.configs = configs
        assert against(server, tmp_path, "--group", "ablation", *options).returncode == 0
        assert {by for _, by in bars({"spec": json.loads(Asked.reports[-1]["spec"])})} == {key}


def test_the_help_imports_nothing_that_takes_long() -> None:
    assert "PROJECT" in help_of("stasc.dashboard", without={"wandb", "wandb_workspaces", "torch", "hydra"})
