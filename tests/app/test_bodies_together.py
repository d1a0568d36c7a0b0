"""What all requests hold together is bounded; and what is refused anyway is refused before its body is read."""

import asyncio
import json

import pytest
from starlette.exceptions import HTTPException

from tailwise.app.bodies import BodyRoom
from tailwise.app.server import create_app
from tailwise.app.settings import AppSettings
from tailwise.app.workspace.workspace import Workspace

FORM = "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.audit"\r\n\r\n'
FIELD = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"a" * 1_000_000 + b"\r\n"
TALK = b'{"messages": [{"role": "user", "content": "what is alpha?"}]' + b" " * 1_900_000
TOKEN = "a-token-of-sixteen-signs"


class Sending:
    """A request to an app whose body comes in pieces, after which the other side is silent until it is let go."""

    def __init__(self, app, path, pieces, kind, *, method="POST", rest=None, client="127.0.0.1"):
        self.app, self.pieces, self.rest = app, list(pieces), rest
        self.taken, self.whole, self.status, self.said = 0, False, None, b""
        self.silent, self.go_on, self.begun = asyncio.Event(), asyncio.Event(), asyncio.Event()
        headers = {"host": "127.0.0.1:8440", "content-type": kind, "authorization": f"Bearer {TOKEN}"}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "client": (client, 1),
            "server": ("127.0.0.1", 8440),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }

    async def receive(self):
        if self.pieces:
            self.taken += 1
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}
        self.silent.set()
        await self.go_on.wait()
        if self.rest is None:
            return {"type": "http.disconnect"}
        if self.whole:
            await asyncio.Event().wait()  # for the answer, as long as it takes
        self.whole = True
        return {"type": "http.request", "body": self.rest, "more_body": False}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.said += message.get("body", b"")

    async def run(self):
        """Until it is answered."""
        await self.app(self.scope, self.receive, self.send)
        return self.status

    async def until_silent(self):
        """Begin, and go on until all pieces are taken; the task that it goes on in."""
        going = asyncio.ensure_future(self.run())
        waits = asyncio.ensure_future(self.silent.wait())
        await asyncio.wait([going, waits], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        return going


@pytest.fixture
def tokened(folder, tmp_path):
    """Makes an app whose writes are proven by a token."""

    def make(**more):
        state = tmp_path / "state"
        (state / "audits").mkdir(parents=True, exist_ok=True)
        settings = AppSettings(token=TOKEN, state=state, **more)
        return create_app(Workspace([folder, state / "audits"]), settings)

    return make


def test_a_room_is_shared_and_given_back():
    room = BodyRoom(of_one=100, of_all=150)
    with room.share("a") as first, room.share("a") as second, room.share("b") as third:
        first(60)
        first(70)
        second(30)
        with pytest.raises(HTTPException) as full:
            second(31)
        assert (full.value.status_code, full.value.headers["retry-after"]) == (503, "10")
        third(50)
        with pytest.raises(HTTPException):
            third(51)
    with room.share("a") as later:
        later(100)


def test_questions_that_never_end_are_not_held_without_bound(tokened):
    app = tokened()

    async def flood():
        open_ones = [Sending(app, "/assistant/ask", [TALK], "application/json") for _ in range(12)]
        going = [await one.until_silent() for one in open_ones]
        refused = [one for one in open_ones if one.status is not None]
        assert {one.status for one in refused} == {503}
        assert sum(len(TALK) for one in open_ones if one.status is None) <= 8_000_000
        other = Sending(app, "/assistant/ask", [TALK], "application/json", client="127.0.0.2", rest=b"}")
        other.go_on.set()
        assert await other.run() == 200
        for one in open_ones:
            one.go_on.set()
        await asyncio.gather(*going)
        after = Sending(app, "/assistant/ask", [TALK], "application/json", rest=b"}")
        after.go_on.set()
        assert await after.run() == 200

    asyncio.run(flood())


def test_tokens_that_never_end_take_no_room_from_who_has_one(tokened):
    app = tokened()

    async def flood():
        doors = [Sending(app, "/login", [b"token=" + b"a" * 65_000], FORM) for _ in range(40)]
        going = [await one.until_silent() for one in doors]
        assert sum(one.status is None for one in doors) == 15
        inside = Sending(app, "/assistant/ask", [TALK], "application/json", rest=b"}")
        inside.go_on.set()
        assert await inside.run() == 200
        for one in doors:
            one.go_on.set()
        await asyncio.gather(*going)

    asyncio.run(flood())


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/jobs", FORM), ("/api/jobs", "application/json"), ("/settings", FORM), ("/models/x/tags", FORM)],
)
def test_a_form_has_no_room_for_what_it_never_needs(tokened, path, kind):
    sending = Sending(tokened(), path, [b"a" * 60_000] * 9, kind, method="PUT" if "tags" in path else "POST")
    assert (asyncio.run(sending.run()), sending.taken) == (413, 2)


@pytest.mark.parametrize(
    ("pieces", "kind", "most"),
    [
        ([FIELD] * 100, PARTS, 1),
        ([b"a" * 1_000_000] * 100, FORM, 0),
        ([FILE + b"x\r\n", FILE + b"x\r\n"] + [b"a" * 1_000_000] * 100, PARTS, 2),
        ([b"a" * 1_000_000] * 100, "application/json", 0),
    ],
    ids=["fields", "one long field", "files", "no form"],
)
def test_an_upload_is_one_file_and_nothing_beside(tokened, pieces, kind, most):
    sending = Sending(tokened(), "/uploads", pieces, kind)
    assert asyncio.run(sending.run()) == 400
    assert sending.taken <= most


def test_a_second_upload_is_refused_unread_and_a_later_one_taken(tokened, folder):
    app = tokened()
    data = (folder / "base.audit").read_bytes() + b"\r\n--b--\r\n"

    async def two():
        first = Sending(app, "/uploads", [FILE], PARTS, rest=data)
        going = await first.until_silent()
        second = Sending(app, "/uploads", [FILE] * 5, PARTS)
        assert (await second.run(), second.taken) == (400, 0)
        assert b"another file is being uploaded" in second.said
        first.go_on.set()
        await going
        assert first.status == 200

        gone = Sending(app, "/uploads", [FILE], PARTS)
        gone.go_on.set()
        await gone.run()
        later = Sending(app, "/uploads", [FILE], PARTS, rest=data)
        later.go_on.set()
        assert await later.run() == 200

    asyncio.run(two())


def test_nothing_is_taken_where_too_much_is_kept(tokened, tmp_path):
    app = tokened(most_kept=250_000_100)
    kept = tmp_path / "state" / "audits" / "old.audit"
    kept.write_bytes(bytes(101))
    sending = Sending(app, "/uploads", [FILE] * 5, PARTS)
    assert (asyncio.run(sending.run()), sending.taken) == (400, 0)
    assert b"no more are taken" in sending.said


def use_up(rate):
    while rate.allows():
        pass


@pytest.mark.parametrize(
    ("path", "used", "status"),
    [
        ("/jobs", "starts", 400),
        ("/api/jobs", "starts", 400),
        ("/uploads", "starts", 400),
        ("/assistant/ask", "questions", 400),
        ("/login", "logins", 429),
    ],
)
def test_too_many_within_a_minute_are_refused_unread(tokened, path, used, status):
    app = tokened()
    use_up(getattr(app.state.context, used))
    sending = Sending(app, path, [b"{}"] * 5, PARTS)
    assert (asyncio.run(sending.run()), sending.taken) == (status, 0)
    assert b"too many" in sending.said


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("POST", "/api/jobs"), ("POST", "/uploads"), ("PUT", "/models/x/tags"), ("POST", "/settings")],
)
def test_a_read_only_server_reads_nothing(tokened, method, path):
    sending = Sending(tokened(read_only=True), path, [b"{}"] * 5, FORM, method=method)
    assert (asyncio.run(sending.run()), sending.taken) == (400, 0)


def test_a_rate_is_looked_at_without_counting(tokened):
    context = tokened().state.context
    assert not any(context.starts.full for _ in range(100))
    assert context.starts.allows()


def test_the_largest_talk_of_the_page_has_room(tokened):
    messages = [{"role": "user", "content": "模" * 8000} for _ in range(23)]
    sending = Sending(
        tokened(), "/assistant/ask", [], "application/json", rest=json.dumps({"messages": messages}).encode()
    )
    sending.go_on.set()
    assert asyncio.run(sending.run()) == 200
