"""A web server may send on without end: no more is read than was asked for."""

import contextlib
import http.server
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
