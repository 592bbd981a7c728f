"""A W&B server on loopback, which stores what wandb-core sends as W&B does, and can go down or hang."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

from wandb_runs import EVENTS, HISTORY, OUTPUT, Artifact, FakeRun

ENTITY = "tester"

Answer = dict[str, Any]


class Backend:
    """The server. `runs` holds what arrived; `unknown` the GraphQL operations that it could not answer."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.runs: dict[str, FakeRun] = {}
        self.unknown: list[str] = []
        self.requests: list[tuple[float, str, Any]] = []  # time.time(), what was asked, its body or variables
        self._artifacts: dict[str, Artifact] = {}
        self._lock = threading.Lock()
        self._mode = "up"
        self._server: _Server | None = None
        self._port = 0

    def __enter__(self) -> Backend:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that make wandb use this server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "f" * 40,
            "WANDB_ENTITY": ENTITY,
            "WANDB_ERROR_REPORTING": "false",
            "NO_PROXY": "127.0.0.1",
        }

    def up(self) -> None:
        """Answers, on the port that it first had."""
        self._mode = "up"
        if self._server is None:
            self._server = _Server(self, self._port)
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def hang(self) -> None:
        """Accepts requests, but answers none until `up` or `down`."""
        self._mode = "hang"

    def down(self) -> None:
        """Refuses connections, and cuts the open ones, until `up`."""
        self._mode = "down"
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def serves(self) -> bool:
        """Waits while the server hangs; returns whether it answers."""
        while self._mode == "hang":
            time.sleep(0.02)
        time.sleep(self.latency_s)
        return self._mode == "up"

    def answer(self, path: str, body: bytes) -> tuple[int, Answer]:
        """Returns the HTTP status and JSON that answer a request."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        with self._lock:
            if parts == ["graphql"]:
                return self._graphql(json.loads(body))
            match parts:
                case ["files", _, _, run, "file_stream"]:
                    return self._file_stream(run, json.loads(body))
                case ["storage", kind, owner, name]:
                    self._store(kind, owner, name, body)
                    return 200, {}
            self.unknown.append(path)
            return 404, {}

    def _graphql(self, asked: Answer) -> tuple[int, Answer]:
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
        name, variables = found[1] if found else asked["query"], asked.get("variables") or {}
        self.requests.append((time.time(), name, variables))
        operation = self._operations().get(name)
        if operation is None:
            self.unknown.append(name)
            return 400, {"errors": [{"message": f"unknown operation {name}"}]}
        return 200, {"data": operation(variables)}

    def _operations(self) -> dict[str, Callable[[Answer], Answer]]:
        user = {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {
            "Viewer": lambda _: {"viewer": user},
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": {"organization": None}},
            "XXHashDigestsEnabled": lambda _: {"entity": {"xxhashDigestsEnabled": False}},
            "FetchArtifactDigestAlgorithm": lambda _: {"project": None},
            "ArtifactType": lambda _: {"project": {"artifact": None}},
            "UpsertBucket": self._upsert_run,
            "RunResumeStatus": self._resume_status,
            "CreateRunFiles": self._create_run_files,
            "CreateArtifact": self._create_artifact,
            "CreateArtifactManifest": self._create_manifest,
            "UpdateArtifactManifest": self._update_manifest,
            "CreateArtifactFiles": self._create_artifact_files,
            "CommitArtifact": self._commit,
        }

    def _upsert_run(self, given: Answer) -> Answer:
        run_id = given["name"] or given["id"]
        inserted = run_id not in self.runs
        project, entity = given["project"] or "uncategorized", given["entity"] or ENTITY
        run = self.runs.setdefault(run_id, FakeRun(run_id, project, entity, f"unnamed-{len(self.runs) + 1}"))
        names = {"displayName": "name", "groupName": "group", "jobType": "job_type", "tags": "tags"}
        for sent, name in {**names, "notes": "notes", "host": "host"}.items():
            if given.get(sent) is not None:
                setattr(run, name, given[sent])
        if given.get("config"):
            run.raw_config = json.loads(given["config"])
        if given.get("summaryMetrics"):
            run.summary = json.loads(given["summaryMetrics"])
        bucket = {**_bucket(run), "description": None, "sweepName": None, "project": _project(run)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume_status(self, given: Answer) -> Answer:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        telemetry = run.raw_config.get("_wandb", {}).get("value", {}).get("t")
        found = {
            **_bucket(run),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": len(run.lines.get(OUTPUT, [])),
            "eventsLineCount": len(run.lines.get(EVENTS, [])),
            "historyTail": run.tail(HISTORY),
            "eventsTail": run.tail(EVENTS),
            "tags": run.tags,
            "notes": run.notes,
            "wandbConfig": json.dumps({} if telemetry is None else {"t": telemetry}),
        }
        return {"model": {**_project(run), "bucket": found}}

    def _file_stream(self, run_id: str, sent: Answer) -> tuple[int, Answer]:
        self.requests.append((time.time(), "file_stream", {"run": run_id, **sent}))
        run = self.runs.get(run_id)
        if run is None:
            return 404, {"error": f"no run {run_id}"}
        for name, chunk in (sent.get("files") or {}).items():
            run.stream(name, chunk["offset"], chunk["content"])
        run.exit_code = sent.get("exitcode", 0) if sent.get("complete") else None
        return 200, {"exitcode": None, "limits": {}}

    def _create_run_files(self, given: Answer) -> Answer:
        files = [{"name": name, "uploadUrl": self._upload_url("run", given["run"], name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _create_artifact(self, given: Answer) -> Answer:
        """Creates a version; W&B finds one with the same content in the collection, which then counts as committed."""
        sent = given["input"]
        run, name = self.runs[sent["runName"]], sent["artifactCollectionName"]
        versions = [item for item in run.artifacts if item.name == name and item.committed]
        latest = {"id": versions[-1].id} if versions else None
        artifact = next((item for item in versions if item.digest == sent["digest"]), None)
        if artifact is None:
            artifact = Artifact(f"artifact{len(self._artifacts)}", name, sent["digest"])
            self._artifacts[artifact.id] = artifact
            run.artifacts.append(artifact)
        artifact.client_ids.add(sent["clientID"])
        state = "COMMITTED" if artifact.committed else "PENDING"
        made = {"id": artifact.id, "state": state, "artifactSequence": {"latestArtifact": latest}}
        return {"createArtifact": {"artifact": made}}

    def _create_manifest(self, given: Answer) -> Answer:
        return {"createArtifactManifest": self._manifest(given["artifactID"], given)}

    def _update_manifest(self, given: Answer) -> Answer:
        return {"updateArtifactManifest": self._manifest(given["artifactManifestID"].removeprefix("manifest-"), given)}

    def _manifest(self, artifact_id: str, given: Answer) -> Answer:
        if base := given.get("baseArtifactID"):
            self._artifacts[artifact_id].base = self._artifacts[base]
        manifest = f"manifest-{artifact_id}"
        url = self._upload_url("manifest", artifact_id, "manifest")
        return {"artifactManifest": {"id": manifest, "file": {"id": manifest, "uploadUrl": url, "uploadHeaders": []}}}

    def _create_artifact_files(self, given: Answer) -> Answer:
        edges = []
        for item in given["input"]["artifactFiles"]:
            owner, name = item["artifactID"], item["name"]
            url = self._upload_url("artifact", owner, name)
            node: Answer = {"storagePath": None, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": owner}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commit(self, given: Answer) -> Answer:
        artifact = self._artifacts[given["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _upload_url(self, kind: str, owner: str, name: str) -> str:
        return f"{self.url}/storage/{kind}/{quote(owner, '')}/{quote(name, '')}"

    def _store(self, kind: str, owner: str, name: str, body: bytes) -> None:
        self.requests.append((time.time(), f"upload {kind} {owner} {name}", len(body)))
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "artifact":
            self._artifacts[owner].files[name] = body
        else:
            self._artifacts[owner].manifest = body


def _bucket(run: FakeRun) -> Answer:
    lines = len(run.lines.get(HISTORY, []))
    config = json.dumps(run.raw_config)
    return {"id": run.id, "name": run.id, "displayName": run.name, "config": config, "historyLineCount": lines}


def _project(run: FakeRun) -> Answer:
    return {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": run.entity}}


class _Server(ThreadingHTTPServer):
    """Threads that serve one backend, with the open connections."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, backend: Backend, port: int) -> None:
        self.backend, self._open = backend, set[socket.socket]()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Closes all connections, as the client keeps some open between requests."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing of clients that were killed, or cut."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        backend = self.server.backend
        if not backend.serves():
            self.close_connection = True
            return
        try:
            status, answer = backend.answer(self.path, body)
        except Exception as error:
            backend.unknown.append(f"{self.path}: {error!r}")
            status, answer = 500, {}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""
