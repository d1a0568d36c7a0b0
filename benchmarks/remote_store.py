"""Audits from an S3 (moto) and from a web server on loopback, both 50 ms away (`speed.py --part remote`)."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

PAUSE = 0.05  # seconds from a request to its answer
REGION = "us-east-1"


def rows(folder: Path, rounds: int) -> list[str]:
    """Wall seconds of an audit from each place, in turn."""
    with _web(folder) as web, _s3(folder) as (endpoint, bucket):
        places = {"local disk": str(folder), "S3": bucket, "web server": f"{web}/model.safetensors.index.json"}
        found: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, address in places.items():
                found[name].append(_audited(address, endpoint))
    local = min(found["local disk"])
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [f"| SmolLM2-135M's shapes, bf16, {size / 1e6:.0f} MB | wall, least (median) | over local |",
             "|---|---:|---:|"]  # fmt: skip
    for name, took in found.items():
        lines.append(f"| {name} | {min(took):.1f} ({median(took):.1f}) s | {min(took) / local:.2f} × |")
    return lines


def _audited(address: str, endpoint: str) -> float:
    program = (
        "import sys, time, fsspec, tailwise as tw\n"
        "fsspec.config.conf['s3'] = {'endpoint_url': sys.argv[2], 'key': 'k', 'secret': 's'}\n"
        "tw.audit({'up.weight': __import__('numpy').eye(400)}, use_cache=False)\n"
        "began = time.perf_counter()\n"
        "found = tw.audit(sys.argv[1], use_cache=False)\n"
        "assert len(found) > 200, len(found)\n"
        "print(time.perf_counter() - began)\n"
    )
    environment = {**os.environ, "AWS_DEFAULT_REGION": REGION, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", program, address, endpoint], env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


@contextlib.contextmanager
def _web(folder: Path) -> Iterator[str]:
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
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[tuple[str, str]]:
    import fsspec

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    store = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        _wait_for(port)
        os.environ["AWS_DEFAULT_REGION"] = REGION  # as an argument it would be sent with the bucket, and refused
        fs = fsspec.filesystem("s3", endpoint_url=f"http://127.0.0.1:{port}", key="k", secret="s")
        fs.mkdir("bucket")
        fs.put(str(folder), "bucket/model", recursive=True)
        with _delayed(port) as far:
            yield f"http://127.0.0.1:{far}", "s3://bucket/model"
    finally:
        store.terminate()


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    sys.exit("moto's server did not start")


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
