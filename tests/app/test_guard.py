"""Hosts, origins, tokens, proofs, headers and rates."""

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import tailwise as tw
from tailwise.app.guard import HEADERS, Rate, session_of
from tailwise.app.server import create_app
from tailwise.app.settings import AppSettings, is_loopback
from tailwise.app.workspace.workspace import Workspace

TOKEN = "a-token-of-sixteen-signs"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8440",
        "127.0.0.1.evil.example",
        "10.0.0.9",
        "[::2]",
        "",
        "a b",
        "[",
        "0x7f.1",
        "[::1]evil",
        "127.0.0.1:80:80",
        "evil@127.0.0.1",
    ],
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/models", headers={"host": host}).status_code == 421


def test_two_hosts_are_none(client):
    headers = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
    assert client.get("/models", headers=headers).status_code == 421


def test_a_websocket_is_refused(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/jobs/events"):
        pass


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8440", "127.0.0.1", "[::1]:8440", "127.8.8.8"])
def test_this_machine_is_served(client, host):
    assert client.get("/api/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_writes_from_other_sites_are_refused(client, headers):
    assert client.post("/api/jobs", json={"model": "x"}, headers=headers).status_code == 403


@pytest.mark.parametrize("proof", ["", "wrong", "é"])
def test_writes_without_proof_are_refused(client, proof):
    headers = [(b"x-csrf-token", proof.encode("latin-1"))]
    del client.headers["X-CSRF-Token"]
    assert client.post("/api/jobs", json={"model": "x"}, headers=headers).status_code == 403


def test_every_answer_carries_the_policy(client, ids):
    for address in ("/models", "/absent", "/api/absent", "/static/app.js", "/api/models"):
        headers = client.get(address).headers
        for name, value in HEADERS.items():
            assert headers[name] == value
    assert "unsafe" not in HEADERS["content-security-policy"]


@pytest.fixture
def guarded(folder, tmp_path):
    settings = AppSettings(host="0.0.0.0", token=TOKEN, names=("tailwise.example",), state=tmp_path / "guarded")
    with TestClient(create_app(Workspace([folder]), settings), base_url="http://tailwise.example") as opened:
        yield opened


def test_a_token_is_asked_for(guarded):
    assert guarded.get("/api/models").status_code == 401
    assert guarded.get("/models", follow_redirects=False).headers["location"] == "/login?next=%2Fmodels"
    assert guarded.post("/uploads").status_code == 401
    assert guarded.get("/login").status_code == 200


def test_the_bearer_passes_without_a_proof(guarded):
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/api/models", headers=headers).status_code == 200
    assert guarded.post("/api/jobs", json={"model": "../x"}, headers=headers).status_code == 400


def test_the_form_gives_a_cookie_that_is_not_the_token(guarded):
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 401
    answer = guarded.post("/login", data={"token": TOKEN}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert TOKEN not in cookie
    assert guarded.get("/models").status_code == 200


def test_a_forged_cookie_does_not_pass(guarded):
    guarded.cookies.set("tailwise-8440", session_of("another-token-of-sixteen"))
    assert guarded.get("/api/models").status_code == 401


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("/models?q=a%20b&sort=title", "/models?q=a%20b&sort=title"),
        ("//evil.example/x", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/models\r\nset-cookie: a=b", "/"),
        ("", "/"),
    ],
)
def test_the_form_leads_back_to_what_was_asked_for_and_nowhere_else(guarded, wanted, given):
    assert f'name="next" value="{given.replace("&", "&amp;")}"' in guarded.get("/login", params={"next": wanted}).text
    answer = guarded.post("/login", data={"token": TOKEN, "next": wanted}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, given)


def test_a_link_into_the_middle_survives_the_login(guarded):
    asked = guarded.get("/models/x/layers?q=role:mlp_up&size=100")
    form = asked.text.split('name="next" value="')[1].split('"')[0].replace("&amp;", "&")
    assert form == "/models/x/layers?q=role:mlp_up&size=100"


@pytest.mark.parametrize("path", ["/login", "/static/absent.js", "/login/x", "/loginx"])
def test_who_is_not_signed_in_gets_no_proof(guarded, path):
    assert 'name="csrf" content=""' in guarded.get(path).text


def test_a_part_of_a_page_is_not_replaced_by_a_refusal(guarded, client):
    answer = guarded.get("/models", headers={"hx-request": "true"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/login")
    old = client.post("/jobs", data={"model": "x"}, headers={"hx-request": "true", "x-csrf-token": "old"})
    assert (old.status_code, old.headers["hx-retarget"]) == (403, "#problem")


def test_guessing_is_slowed(guarded):
    found = [guarded.post("/login", data={"token": f"guess {i}"}).status_code for i in range(12)]
    assert 429 in found


def test_a_wide_address_needs_a_token():
    with pytest.raises(tw.UsageError, match="token"):
        AppSettings(host="0.0.0.0")
    with pytest.raises(tw.UsageError, match="short"):
        AppSettings(token="short")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example", False)],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_a_rate_forgets_after_a_minute():
    now = [0.0]
    rate = Rate(2, clock=lambda: now[0])
    assert [rate.allows() for _ in range(3)] == [True, True, False]
    now[0] = 60.0
    assert rate.allows()


def test_secrets_are_in_no_text(folder, tmp_path):
    settings = AppSettings(token=TOKEN, state=tmp_path / "s")
    assert TOKEN not in repr(settings)


def test_a_read_only_server_writes_nothing(folder, tmp_path):
    settings = AppSettings(read_only=True, state=tmp_path / "ro")
    with TestClient(create_app(Workspace([folder]), settings), base_url="http://127.0.0.1") as opened:
        page = opened.get("/models").text
        opened.headers["X-CSRF-Token"] = page.split('name="csrf" content="')[1].split('"')[0]
        name = Workspace([folder]).entries("audit")[0].id
        assert opened.post("/api/jobs", json={"model": "base.audit"}).status_code == 400
        assert opened.put(f"/models/{name}/tags", data={"text": "x"}).status_code == 400
        assert opened.post("/uploads", files={"file": b"x"}).status_code == 400
        assert opened.post("/settings", data={"base_url": "http://127.0.0.1:1/v1", "model": "m"}).status_code == 400
