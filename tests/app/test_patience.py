"""Half a request is not waited for: neither a head nor a body that does not come, on new and on used connections."""

import socket
import threading

import pytest
import uvicorn

from tailwise.app import bodies, patience
from tailwise.app.patience import Patient

WHOLE = b"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALVES = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "half a head after a request": WHOLE + b"GET / HTTP/1.1\r\n",
    "half a body": b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 100\r\n\r\ntoken=",
    "half a chunk": b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n40\r\nabc",
}


@pytest.fixture
def port(app, monkeypatch):
    """Of the app, served with patience for a moment."""
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "_GAP_SECONDS", 0.2)
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            started.set()

    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_level="critical", http=Patient, lifespan="off", timeout_keep_alive=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert started.wait(60)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(30)
    listening.close()


def until_closed(port, data):
    """What comes back before the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_a_request_is_not_waited_for(port, half):
    until_closed(port, half)


def test_a_body_that_does_not_come_is_told(port):
    assert until_closed(port, HALVES["half a body"]).startswith(b"HTTP/1.1 408")


def test_whole_requests_on_one_connection_are_answered(port):
    assert until_closed(port, WHOLE + WHOLE).count(b"HTTP/1.1 200") == 2


def test_many_halves_keep_nobody_from_an_answer(port):
    held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(100)]
    for connection in held:
        connection.sendall(HALVES["half a head"])
    assert b"HTTP/1.1 200" in until_closed(port, WHOLE)
    for connection in held:
        assert connection.recv(10) == b""
        connection.close()


def test_of_too_many_connections_the_oldest_that_asks_nothing_gives_way(port, monkeypatch):
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600)
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 5)
    held = []
    for _ in range(5):
        held.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        held[-1].sendall(WHOLE[:20])
    assert b"HTTP/1.1 200" in until_closed(port, WHOLE)
    assert held[0].recv(10) == b""
    for connection in held[1:]:
        connection.sendall(WHOLE[20:])
        assert connection.recv(12) == b"HTTP/1.1 200"
    for connection in held:
        connection.close()


def test_a_new_connection_gives_way_where_all_others_are_at_work(port, monkeypatch):
    monkeypatch.setattr(bodies, "_GAP_SECONDS", 600)
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 2)
    held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2)]
    for connection in held:
        connection.sendall(HALVES["half a body"].replace(b"Content-Length", b"Expect: 100-continue\r\nContent-Length"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    assert until_closed(port, b"") == b""
    for connection in held:
        connection.sendall(b"a" * 94)
        assert connection.recv(12) == b"HTTP/1.1 303"
        connection.close()
