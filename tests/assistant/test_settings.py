"""The endpoint, and its key, which nobody gets."""

import json
import stat

import pytest

from tailwise.app.assistant.endpoint import FILE, KEY, MODEL, URL, Endpoint, forget, load
from tailwise.core.errors import UnreadableError, UsageError

LOCAL = "http://127.0.0.1:8000/v1"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    for name in (URL, MODEL, KEY):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "settings" / "assistant.json"
    monkeypatch.setenv(FILE, str(path))
    return path


def test_nothing_is_configured_by_default(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-something-else")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.com/v1")
    assert Endpoint.from_environment() is None


def test_reads_the_environment(monkeypatch):
    monkeypatch.setenv(URL, LOCAL)
    monkeypatch.setenv(MODEL, "m")
    monkeypatch.setenv(KEY, "secret")
    found = Endpoint.from_environment()
    assert (found.base_url, found.model, found.api_key, found.local) == (LOCAL, "m", "secret", True)


def test_the_key_is_shown_nowhere():
    found = Endpoint(LOCAL, "m", "very-secret")
    assert "very-secret" not in f"{found!r} {found} {found.to_client()}"
    assert found.to_client()["has_key"] is True


def test_a_key_is_not_sent_to_another_server(monkeypatch):
    Endpoint(LOCAL, "m", "secret").save()
    assert Endpoint.from_environment(base_url="https://elsewhere.example/v1", model="m").api_key is None
    assert Endpoint.from_environment().api_key == "secret"
    monkeypatch.setenv(URL, LOCAL)
    monkeypatch.setenv(KEY, "other")
    assert Endpoint.from_environment(base_url="https://elsewhere.example/v1", model="m").api_key is None
    monkeypatch.setenv("MINE", "third")
    found = Endpoint.from_environment(base_url="https://elsewhere.example/v1", model="m", api_key_env="MINE")
    assert found.api_key == "third"


def test_a_change_of_server_drops_the_key():
    found = Endpoint(LOCAL, "m", "secret")
    assert found.changed(model="n").api_key == "secret"
    assert found.changed(base_url="http://127.0.0.1:9/v1").api_key is None
    assert found.changed(base_url="http://127.0.0.1:9/v1", api_key="new").api_key == "new"


def test_only_the_owner_can_read_the_file(kept):
    Endpoint(LOCAL, "m", "secret").save()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert load() == Endpoint(LOCAL, "m", "secret")
    kept.chmod(0o644)
    with pytest.raises(UnreadableError, match="chmod 600"):
        load()
    forget()
    assert load() is None


@pytest.mark.parametrize("text", ["no json", "[]", '{"base_url": "ftp://x", "model": "m"}', '{"model": "m"}'])
def test_damaged_settings_say_so(kept, text):
    kept.parent.mkdir()
    kept.write_text(text)
    with pytest.raises(UnreadableError, match="damaged"):
        load()


def test_settings_without_a_key_may_be_read_by_all(kept):
    kept.parent.mkdir()
    kept.write_text(json.dumps({"base_url": LOCAL, "model": "m"}))
    kept.chmod(0o644)
    assert load().api_key is None


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "file:///etc/passwd", "http://u:p@x/v1",
                                 "http://x/v1?key=1", "http://x:99999/v1"])  # fmt: skip
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError):
        Endpoint(url, "m")


@pytest.mark.parametrize("key", ["one\ntwo", "schlüssel", "a\x00b"])
def test_what_is_no_key_is_refused_without_showing_it(key):
    with pytest.raises(UsageError) as found:
        Endpoint(LOCAL, "m", key)
    assert key not in str(found.value)


def test_a_model_and_a_named_key_are_needed():
    with pytest.raises(UsageError, match="model"):
        Endpoint.from_environment(base_url=LOCAL)
    with pytest.raises(UsageError, match="NO_SUCH"):
        Endpoint.from_environment(base_url=LOCAL, model="m", api_key_env="NO_SUCH")
