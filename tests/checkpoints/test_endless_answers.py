"""A web server may send on without end: no more is read than was asked for."""

import contextlib
import gzip
import http.server
import socketserver
import threading

import pytest

import tailwise as tw
from tailwise.core import web_answers
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import get

pytest.importorskip("aiohttp")


class Quiet(http.server.BaseHTTPRequestHandler):
    """Says that every file has five thousand bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()


@contextlib.contextmanager
def serving(handler):
    """The address of a server on loopback."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture
def endless():
    """Serves more bytes than anybody wants, in pieces whose number is not told before."""

    class Handler(Quiet):
        sent = 0

        def do_GET(self):
            self.send_response(206 if self.headers.get("Range") else 200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/json")
            self.end_headers()
            piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
            with contextlib.suppress(OSError):
                for _ in range(50_000):
                    self.wfile.write(piece)
                    Handler.sent += len(piece)

    with serving(Handler) as address:
        yield address, Handler


@pytest.fixture
def dripping():
    """Serves a byte at a time, and never says that it is done."""

    class Handler(Quiet):
        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not done.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()

    done = threading.Event()
    with serving(Handler) as address:
        yield f"{address}/model.safetensors"
        done.set()


def test_an_answer_that_drips_is_one_error(dripping, monkeypatch):
    monkeypatch.setattr(web_answers, "_PATIENCE", 0.3)
    with pytest.raises(UnreadableError, match=r"its server sent \d+ bytes in"):
        tw.audit(dripping)


#: What a server sends first, and then again and again: nothing of it is a byte of a file.
_PARTIAL = b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\n"
_EMPTY = b"\0\0\0\xff\xff"  # a stored block of deflate without content
_NOTHING = {
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    "lines of a head": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "a head of a chunk": (_PARTIAL + b"\r\n5;", b"a"),
    "trailers": (_PARTIAL + b"\r\n5\r\nabcde\r\n0\r\n", b"X: a\r\n"),
    "empty blocks": (
        _PARTIAL + b"Content-Encoding: gzip\r\n\r\na\r\n" + gzip.compress(b"")[:10] + b"\r\n",
        b"5\r\n" + _EMPTY + b"\r\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", _NOTHING)
def test_an_answer_that_goes_on_without_a_byte_is_one_error(kind, monkeypatch):
    monkeypatch.setattr(web_answers, "_PATIENCE", 0.5)
    first, again = _NOTHING[kind]
    done = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                while line := self.rfile.readline():
                    if line != b"\r\n":
                        continue
                    self.wfile.write(first)
                    while not done.wait(0.05):
                        self.wfile.write(again)
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UnreadableError, match=r"its server sent .* in 0.5 s"):
                get(f"http://127.0.0.1:{server.server_address[1]}/plan.json")
        finally:
            done.set()
            server.shutdown()


@pytest.mark.parametrize("path", ["/model.safetensors", "/model.gguf", "/folder/", "/adapter/"])
def test_a_range_or_a_page_without_end_is_one_error(endless, monkeypatch, path):
    monkeypatch.setattr(web_answers, "_MOST_PAGE", 1 << 20)
    monkeypatch.setattr(web_answers, "_MOST", 1 << 20)
    address, handler = endless
    with pytest.raises(UnreadableError):
        tw.audit(address + path)
    assert handler.sent < 100 << 20


def test_so_is_a_file_that_is_read_whole(endless, monkeypatch):
    monkeypatch.setattr(web_answers, "_MOST", 1 << 20)
    address, handler = endless
    with pytest.raises(UnreadableError, match="more than the 1048576 bytes"):
        get(f"{address}/plan.json")
    assert handler.sent < 100 << 20
