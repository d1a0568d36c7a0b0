"""Half a request is not waited for: neither a head nor a body that does not come, on new and on used connections."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from starlette.responses import Response

from tailwise.app import bodies, large_answers, patience
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
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600)
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


# Answers that nobody reads


@pytest.fixture
def unread(app, port, monkeypatch):
    """Connections that ask for much and read nothing."""
    app.add_api_route("/much", lambda: Response(bytes(32 << 20)))
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600)
    held = []

    def made(count, requests=1):
        for _ in range(count):
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held[-1].settimeout(60)
            held[-1].connect(("127.0.0.1", port))
            held[-1].sendall(MUCH * requests)
        return held[-count:]

    yield made
    for connection in held:
        connection.close()


MUCH = b"GET /much HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def hurried(monkeypatch):
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(patience, "STALL_SECONDS", 0.3)


def ended(connection):
    """How much of an answer came before the connection was ended."""
    total = 0
    try:
        while piece := connection.recv(1 << 20):
            total += len(piece)
    except ConnectionResetError:
        pass
    return total


@pytest.mark.parametrize("requests", [1, 3])
def test_an_answer_that_nobody_reads_is_not_kept(unread, monkeypatch, requests):
    hurried(monkeypatch)
    (connection,) = unread(1, requests)
    time.sleep(1.5)  # the other side's patience, which is what is tried here
    assert ended(connection) < 32 << 20


def test_an_answer_that_is_read_comes_whole(port, app):
    app.add_api_route("/much", lambda: Response(bytes(32 << 20)))
    assert len(until_closed(port, MUCH)) > 32 << 20


def test_those_that_read_nothing_give_way(port, unread, monkeypatch):
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600)
    held = unread(4, 2)
    for _ in range(200):
        time.sleep(0.05)
        with contextlib.suppress(ConnectionResetError):  # until it is seen that the others do not read
            if b"HTTP/1.1 200" in until_closed(port, WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")):
                break
    else:
        pytest.fail("none of them gave way")
    assert sum(ended(one) < 32 << 20 for one in held[:1]) == 1


def test_only_so_many_large_answers_are_held_for_one_address(port, unread, monkeypatch):
    monkeypatch.setattr(large_answers, "_MOST_OF_ONE", 70 << 20)
    monkeypatch.setattr(patience, "HEAD_SECONDS", 600)
    held = unread(2)
    for _ in range(60):
        time.sleep(0.1)
        answer = until_closed(port, MUCH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        if b"HTTP/1.1 503" in answer:
            break
    assert len(held) == 2
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"x-content-type-options" in answer
    assert b"retry-after" in answer


def test_large_answers_come_in_their_order(port, app):
    data = bytes(range(256)) * 20_000
    app.add_api_route("/bytes", lambda: Response(data))
    said = MUCH.replace(b"/much", b"/bytes").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert until_closed(port, said).partition(b"\r\n\r\n")[2] == data
