"""What is sent is counted before it is kept; a head is an answer without its body."""

import asyncio
import tempfile
from types import SimpleNamespace

import pytest
from starlette.exceptions import HTTPException

from tailwise.app import bodies
from tailwise.app.settings import AppSettings

MEGABYTE = b"a" * 1_000_000


def chunks(most):
    """More than may be sent, bit by bit; how much was taken is known afterwards."""
    taken = []

    def bits():
        for _ in range(most):
            taken.append(1)
            yield MEGABYTE

    return taken, bits


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/jobs", "application/x-www-form-urlencoded"),
        ("/jobs", "multipart/form-data; boundary=b"),
        ("/api/jobs", "application/json"),
        ("/assistant/ask", "application/json"),
        ("/settings", "application/x-www-form-urlencoded"),
        ("/login", "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_that_says_its_size_is_refused_unread(client, path, kind):
    answer = client.post(path, content=MEGABYTE * 3, headers={"content-type": kind})
    assert answer.status_code == 413
    assert "larger" in answer.text


def multipart(bits):
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.audit"\r\n\r\n'
    yield from bits()
    yield b"\r\n--b--\r\n"


def test_an_upload_of_unknown_size_ends_where_too_much_came(client, app, monkeypatch):
    object.__setattr__(app.state.context.settings, "largest_upload", 3_000_000)
    spooled = []
    make = tempfile.SpooledTemporaryFile.write
    monkeypatch.setattr(
        tempfile.SpooledTemporaryFile, "write", lambda self, data: spooled.append(len(data)) or make(self, data)
    )
    _, bits = chunks(20)
    answer = client.post(
        "/uploads", content=multipart(bits), headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413
    assert sum(spooled) <= 3_100_000


def test_a_head_is_an_answer_without_its_body(client, ids):
    for address in ("/models", "/static/app.js", "/api/models", f"/models/{ids['base']}/layers?export=csv"):
        asked, whole = client.head(address), client.get(address)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-type"] == whole.headers["content-type"]


def test_a_head_of_a_stream_ends(client):
    assert client.head("/jobs/events").status_code == 200


def test_a_login_is_small(client):
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=b"token=" + b"a" * 70_000, headers=kind).status_code == 413
    longest = b"token=" + b"%61" * 500 + b"&next=/" + b"%61" * 7999
    assert client.post("/login", content=longest, headers=kind, follow_redirects=False).status_code == 303


def came(monkeypatch, path, pieces):
    """With what, and after how many seconds, a body of (seconds, bytes) is given up; None where it is whole."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bodies, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def take():
        left = list(pieces)

        async def receive():
            seconds, count = left.pop(0)
            clock.now += seconds
            return {"type": "http.request", "body": bytes(count), "more_body": bool(left)}

        bounded = bodies.bounded(receive, bodies.limits_at(path, AppSettings()), lambda nbytes: None)
        while (await bounded())["more_body"]:
            pass

    try:
        asyncio.run(take())
    except HTTPException as error:
        return error.status_code, clock.now
    return None


@pytest.mark.parametrize(
    ("path", "pieces", "ends"),
    [
        ("/uploads", [(1, 60_000)] * 3000, None),  # an honest line, for fifty minutes
        ("/uploads", [(1, 0)] * 50 + [(1, 60_000)] * 1000, None),
        ("/uploads", [(1, 0)] * 1000, 60),  # a trickle
        ("/uploads", [(20, 40_000)] * 1000, 80),
        ("/uploads", [(0, 5_000_000)] + [(1, 0)] * 1000, 160),  # what came fast is no leave for hours
        ("/api/jobs", [(1, 0)] * 1000, 60),
        ("/login", [(1, 1)] * 9, None),
        ("/login", [(1, 1)] * 1000, 10),
        ("/login", [(1, 5000)] * 12, 10),
    ],
)
def test_a_body_keeps_up_or_is_given_up(monkeypatch, path, pieces, ends):
    assert came(monkeypatch, path, pieces) == (None if ends is None else (408, ends))
