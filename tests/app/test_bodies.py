"""What is sent is counted before it is kept; a head is an answer without its body."""

import tempfile

import pytest

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
