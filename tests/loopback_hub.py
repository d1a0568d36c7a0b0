"""Loopback servers that log what they serve: a plain web server, and a Hub."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Server:
    """What a loopback server serves and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)  # path → content
    ranges: bool = True
    log: list[tuple[str, str, int, int]] = field(default_factory=list)  # method, path, first byte, bytes
    auth: list[str | None] = field(default_factory=list)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)  # path prefix → status, X-Error-Code
    redirects: dict[str, str] = field(default_factory=dict)  # path → address
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # path, Authorization
    api: dict[str, dict] = field(default_factory=dict)
    cut: int = 0  # answers still to be broken off halfway
    pause: float = 0.0  # seconds before a range is answered
    at_once: list[int] = field(default_factory=list)  # ranges under way, at the start of each
    under_way: int = 0
    url: str = ""

    def served(self, suffix: str) -> list[tuple[int, int]]:
        return [(first, count) for verb, path, first, count in self.log if verb == "GET" and path.endswith(suffix)]


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class with its methods
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            path = self.path.partition("?")[0]
            if path != "/api/agent-harnesses":  # which huggingface_hub asks for on its own account
                server.auth.append(self.headers.get("Authorization"))
            server.seen.append((path, self.headers.get("Authorization")))
            if path in server.redirects:
                return self._send(302, b"", {"Location": server.redirects[path]}, body)
            for prefix, (status, code) in server.errors.items():
                if path.startswith(prefix):
                    return self._send(status, b"", {"X-Error-Code": code} if code else {}, body)
            if path in server.api:
                return self._send(200, json.dumps(server.api[path]).encode(), {}, body)
            if path not in server.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self._file(path, server.files[path], body)

        def _file(self, path, data, body):
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            headers = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            first, last, status = 0, len(data) - 1, 200
            if asked and server.ranges:
                first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            server.log.append((self.command, path, first, last - first + 1))
            return self._send(status, data[first : last + 1], headers, body)

        def _send(self, status, data, headers, body):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if status == 206:
                server.under_way += 1
                server.at_once.append(server.under_way)
                time.sleep(server.pause)
                server.under_way -= 1
            if body:
                if server.cut and status == 206:
                    server.cut -= 1
                    data, self.close_connection = data[: len(data) // 2], True
                try:
                    self.wfile.write(data)
                except ConnectionError:
                    self.close_connection = True

    return Handler


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    httpd.daemon_threads = True
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


class Hub:
    """A repository `org/model` on a fake Hub."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def publish_branches(self, *names: str, tags: tuple[str, ...] = (), repo: str = "org/model"):
        refs = {
            "branches": [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": COMMIT} for name in names],
            "tags": [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": COMMIT} for name in tags],
            "converts": [],
        }
        self.server.api[f"/api/models/{repo}/refs"] = refs

    def publish(self, files: dict[str, bytes], *, repo: str = "org/model", revisions: tuple[str, ...] = ("main",)):
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "blobId": sha256(data).hexdigest()[:40],
                "lfs": {"sha256": sha256(data).hexdigest(), "size": len(data), "pointerSize": 100},
            }
            for name, data in files.items()
        ]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self.server.api[f"/api/models/{repo}"] = info
        for revision in (*revisions, COMMIT):
            self.server.api[f"/api/models/{repo}/revision/{revision.replace('/', '%2F')}"] = info
        for name, data in files.items():
            self.server.files[f"/{repo}/resolve/{COMMIT}/{name}"] = data

    @property
    def bytes_served(self) -> int:
        return sum(count for verb, _, _, count in self.server.log if verb == "GET")


@pytest.fixture
def hub(server: Server, monkeypatch, tmp_path) -> Hub:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Hub(server)
