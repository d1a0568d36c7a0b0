"""Audits from an S3 (moto) and from a web server on loopback, both 50 ms away (`speed.py --part remote`).

The stores take processor time on the cores that the audit computes on: it is measured, and told beside. Where nginx is
installed, with its module for Lua, it is the web server, and what stands before moto and waits; else a server and a
pump in Python are, which take more.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PAUSE = 0.05  # seconds from a request to its answer
REGION = "us-east-1"


def rows(folder: Path, rounds: int) -> list[str]:
    """Wall seconds of an audit from each place, in turn, its processor seconds and those of the store."""
    native = _native()
    with _web(folder, native) as web, _s3(folder, native) as s3:
        places = {"local disk": Place(str(folder)), "S3": s3, "web server": web}
        found: dict[str, list[Took]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, place in places.items():
                before = place.store_seconds()
                wall, ours = _audited(place)
                found[name].append(Took(wall, ours, place.store_seconds() - before))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [f"| SmolLM2-135M's shapes, bf16, {size / 1e6:.0f} MB | wall, least (median) | over local "
             "| processor: audit | store |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    local = min(one.wall for one in found["local disk"])
    titles = {"local disk": "local disk", "S3": f"S3 (moto behind {native or 'Python'})",
              "web server": f"web server ({native or 'Python'})"}  # fmt: skip
    for name, took in found.items():
        least = min(took, key=lambda one: one.wall)
        store = f"{least.store:.1f} s" if name in {"S3", "web server"} else "–"
        middle = median(one.wall for one in took)
        lines.append(f"| {titles[name]} | {least.wall:.1f} ({middle:.1f}) s | {least.wall / local:.2f} × "
                     f"| {least.ours:.1f} s | {store} |")  # fmt: skip
    return lines


@dataclass(frozen=True)
class Place:
    """Where a checkpoint lies, and what its store has computed."""

    address: str
    endpoint: str = ""
    store_seconds: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True)
class Took:
    """Seconds of one audit: on the clock, of its processor, and of the store's."""

    wall: float
    ours: float
    store: float


def _native() -> str:
    """`nginx`, if it can wait here."""
    lua = Path("/usr/lib/nginx/modules/ngx_http_lua_module.so")
    return "nginx" if shutil.which("nginx") and lua.is_file() else ""


def _seconds_of(*pids: int) -> float:
    """Processor seconds of processes and of their children that run."""
    import psutil

    found = [psutil.Process(pid) for pid in pids]
    every = [*found, *(child for one in found for child in one.children(recursive=True))]
    return sum(sum(one.cpu_times()[:2]) for one in every)


def _audited(place: Place) -> tuple[float, float]:
    program = (
        "import sys, time, fsspec, tailwise as tw\n"
        "fsspec.config.conf['s3'] = {'endpoint_url': sys.argv[2], 'key': 'k', 'secret': 's'}\n"
        "tw.audit({'up.weight': __import__('numpy').eye(400)}, use_cache=False)\n"
        "began, used = time.perf_counter(), time.process_time()\n"
        "found = tw.audit(sys.argv[1], use_cache=False)\n"
        "assert len(found) > 200, len(found)\n"
        "print(time.perf_counter() - began, time.process_time() - used)\n"
    )
    environment = {**os.environ, "AWS_DEFAULT_REGION": REGION, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", program, place.address, place.endpoint]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    wall, ours = done.stdout.split()[-2:]
    return float(wall), float(ours)


@contextlib.contextmanager
def _nginx(location: str) -> Iterator[tuple[str, int]]:
    """nginx with this in its one location, every answer a pause late: its address and its process."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as made:
        settings = Path(made) / "nginx.conf"
        settings.write_text(f"""
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; worker_processes 1; pid {made}/pid; error_log {made}/errors; user root;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; lua_package_path "/usr/share/lua/5.1/?.lua;;";
  client_body_temp_path {made}/a; proxy_temp_path {made}/b; fastcgi_temp_path {made}/c; uwsgi_temp_path {made}/d;
  scgi_temp_path {made}/e; client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    location / {{ access_by_lua_block {{ ngx.sleep({PAUSE}) }} {location} }}
  }}
}}
""")
        server = subprocess.Popen(["nginx", "-c", str(settings), "-p", made], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def _web(folder: Path, native: str) -> Iterator[Place]:
    index = "model.safetensors.index.json"
    if native:
        with _nginx(f"root {folder};") as (address, pid):
            yield Place(f"{address}/{index}", store_seconds=lambda: _seconds_of(pid))
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            time.sleep(PAUSE)
            path = folder / self.path.lstrip("/").partition("?")[0]
            if path.parent != folder or not path.is_file():
                self.send_error(404)
                return
            size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2] or size - 1), size - 1) if asked else size - 1
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                with path.open("rb") as file:
                    file.seek(first)
                    self.wfile.write(file.read(last - first + 1))

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield Place(f"http://127.0.0.1:{served.server_port}/{index}", store_seconds=time.process_time)
    served.shutdown()


@contextlib.contextmanager
def _s3(folder: Path, native: str) -> Iterator[Place]:
    import fsspec

    port = _free_port()
    store = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        _wait_for(port)
        os.environ["AWS_DEFAULT_REGION"] = REGION  # as an argument it would be sent with the bucket, and refused
        fs = fsspec.filesystem("s3", endpoint_url=f"http://127.0.0.1:{port}", key="k", secret="s")
        fs.mkdir("bucket")
        fs.put(str(folder), "bucket/model", recursive=True)
        if native:
            passed = f"proxy_pass http://127.0.0.1:{port}; proxy_set_header Host $http_host; proxy_buffering off;"
            with _nginx(passed) as (address, pid):
                yield Place("s3://bucket/model", address, lambda: _seconds_of(pid, store.pid))
        else:
            with _delayed(port) as far:
                address = f"http://127.0.0.1:{far}"
                yield Place("s3://bucket/model", address, lambda: time.process_time() + _seconds_of(store.pid))
    finally:
        store.terminate()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    sys.exit("a server did not start")


@contextlib.contextmanager
def _delayed(port: int) -> Iterator[int]:
    """A port that passes everything on to `port`, what comes from clients a pause later."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", port))
            for one, other, pause in ((client, there, PAUSE), (there, client, 0.0)):
                threading.Thread(target=_pump, args=(one, other, pause), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()[1]
    listening.close()


def _pump(one: socket.socket, other: socket.socket, pause: float) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 18):
            time.sleep(pause)
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    print(json.dumps(rows(Path(sys.argv[1]), 1), indent=1))
