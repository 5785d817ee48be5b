"""A Hugging Face Hub on the loopback: as much of its HTTP interface as downloading files of a model repository needs.

Files are kept in memory by commit. What a test changes takes effect with the next request, and every request is written
down, so that a test can say what was asked and what was not.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """One model repository and its commits; `address` goes to the code under test as the endpoint."""

    repo_id: str
    address: str = ""
    newest: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of every request, in order, without queries."""
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Part of a path -> HTTP status and X-Error-Code with which requests for it fail."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of files that replace the true ones."""
    info: dict[str, Any] = field(default_factory=dict)
    """Fields of the repository's description that replace the true ones."""
    raw_info: bytes | None = None
    """The whole answer to a request for the description, in place of the true one."""
    moves_to: str | None = None
    """Commit that is the newest from the next request for a description on."""
    lfs_sha256: dict[str, str] = field(default_factory=dict)
    """sha256 that is stated of large files, in place of the true ones."""

    def add(self, commit: str, files: dict[str, bytes]) -> None:
        """Add a commit, which is then the newest."""
        self.commits[commit] = files
        self.newest = commit

    def downloads(self) -> list[str]:
        """Paths of the files that were sent, in order."""
        return [
            request.split("/resolve/", 1)[1][41:]
            for request in self.requests
            if request.startswith("GET /" + self.repo_id)
        ]

    def describe(self, commit: str) -> dict[str, Any]:
        """Answer to /api/models/<repository>[/revision/<commit>]."""
        siblings = []
        for name, body in self.commits[commit].items():
            siblings.append({"rfilename": name, "size": len(body), "blobId": _git_sha1(body)})
        return {"id": self.repo_id, "modelId": self.repo_id, "sha": commit, "siblings": siblings, **self.info}


@contextmanager
def fake_hub(repo_id: str) -> Iterator[FakeHub]:
    """Serve an empty repository on a free port of the loopback."""
    hub = FakeHub(repo_id)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def log_message(self, format: str, *args: Any) -> None:
            """Tests read `requests` instead."""

        def _answer(self, *, send_body: bool) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = _respond(hub, path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

    return Handler


def _respond(hub: FakeHub, path: str) -> tuple[int, dict[str, str], bytes]:
    for part, (status, code) in hub.failing.items():
        if part in path:
            return status, {"X-Error-Code": code} if code else {}, b""
    if found := re.fullmatch(rf"/api/models/{hub.repo_id}(?:/revision/([^/]+))?", path):
        if hub.raw_info is not None:
            return 200, {"Content-Type": "application/json"}, hub.raw_info
        commit = found[1] or hub.newest
        if hub.moves_to is not None:
            hub.newest = hub.moves_to
        if commit not in hub.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        return 200, {"Content-Type": "application/json"}, json.dumps(hub.describe(commit)).encode()
    if found := re.fullmatch(rf"/{hub.repo_id}/resolve/([^/]+)/(.+)", path):
        if found[1] not in hub.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        body = hub.commits[found[1]].get(found[2])
        if body is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[1]}, b""
        etag = _git_sha1(body)
        if _is_large(found[2]):
            etag = hub.lfs_sha256.get(found[2], hashlib.sha256(body).hexdigest())
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": found[1], **hub.headers}, body
    return 404, {"X-Error-Code": "RepoNotFound"}, b""


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".pt"))


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
