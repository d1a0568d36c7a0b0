"""A web server with byte ranges that drops connections when told, and a network that can be cut."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Lock, Thread


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder by ranges; the first `drops` ranges beyond the headers are cut off without an answer."""

    protocol_version = "HTTP/1.1"
    drops, served = 0, 0
    guard = Lock()

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(data) - 1
        if span:
            start, end = span.removeprefix("bytes=").split("-")
            first, last = int(start), min(int(end or last), last)
        with self.guard:
            type(self).served += 1
            if last - first > 10_000 and type(self).drops > 0:
                type(self).drops -= 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self.send_response(206 if span else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def do_HEAD(self):
        path = Path(self.translate_path(self.path))
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()


@contextmanager
def serving(folder):
    """(address, handler class) of a server in this process."""
    handler = type("Own", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_COUNT = count()


class Apart:
    """A server in a network namespace of its own, at the far end of a cable that can be pulled."""

    def __init__(self, folder: Path) -> None:
        # A cable outlives its namespace by a moment, so the next one has another name and another network.
        count = next(_COUNT)
        tag = f"tw{os.getpid() % 10000}x{count}"
        self.space, self.near, self.far = tag, f"{tag}a", f"{tag}b"
        self.net = f"10.{200 + os.getpid() % 50}.{(os.getpid() + 37 * count) % 250}"
        _ip("netns", "add", self.space)
        try:
            _ip("link", "add", self.near, "type", "veth", "peer", "name", self.far)
            _ip("link", "set", self.far, "netns", self.space)
            _ip("addr", "add", f"{self.net}.1/24", "dev", self.near)
            _ip("-n", self.space, "addr", "add", f"{self.net}.2/24", "dev", self.far)
            _ip("-n", self.space, "link", "set", self.far, "up")
            self.plug()
            self._server = subprocess.Popen(
                ["ip", "netns", "exec", self.space, sys.executable, __file__, str(folder), f"{self.net}.2"],
                stdout=subprocess.PIPE,
            )
            assert self._server.stdout is not None
            self.address = f"http://{self.net}.2:{self._server.stdout.readline().decode().strip()}"
        except Exception:
            _ip("netns", "del", self.space)
            raise

    def pull(self) -> None:
        _ip("link", "set", self.near, "down")

    def plug(self) -> None:
        _ip("link", "set", self.near, "up")

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()
        _ip("netns", "del", self.space)

    @staticmethod
    def possible() -> bool:
        if os.geteuid() or shutil.which("ip") is None:
            return False
        probe = f"twp{os.getpid()}"
        if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
            return False
        cable = ("link", "add", f"{probe}a"[-15:], "type", "veth", "peer", "name", f"{probe}b"[-15:])
        possible = not subprocess.run(["ip", *cable], capture_output=True, check=False).returncode
        if possible:
            _ip("link", "del", f"{probe}a"[-15:])
        _ip("netns", "del", probe)
        return possible


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    server = ThreadingHTTPServer((sys.argv[2], 0), partial(Handler, directory=sys.argv[1]))
    print(server.server_port, flush=True)
    server.serve_forever()
