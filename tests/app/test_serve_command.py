"""`tailwise serve`: what it refuses, and what it tells."""

import pytest
from typer.testing import CliRunner

import tailwise as tw
from tailwise.app import server
from tailwise.app.addresses import split
from tailwise.cli.main import app

TOKEN = "a-token-of-sixteen-signs"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Run the command without serving; what was said, and the settings."""
    given = []
    monkeypatch.setattr(server, "serve", lambda workspace, settings: given.append(settings))

    def run(*arguments, state=tmp_path / "state"):
        result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0", "--state", str(state), *arguments])
        return result, given[-1] if given else None

    return run


def test_a_token_that_was_given_is_in_no_log(served):
    result, settings = served("--token", TOKEN)
    assert settings.token == TOKEN
    assert TOKEN not in result.output


def test_a_token_that_was_made_is_told_once(served):
    result, settings = served("--token", "new")
    assert result.output.count(settings.token) == 1


def test_a_folder_for_the_state_that_cannot_be_is_told(served, tmp_path):
    (tmp_path / "file").write_text("")
    result, settings = served(state=tmp_path / "file" / "state")
    assert settings is None
    assert isinstance(result.exception, tw.UsageError)
    assert "--state" in str(result.exception)


def test_passwords_of_two_histories_are_not_told():
    with pytest.raises(tw.UsageError) as caught:
        split(["postgresql://user:secret@host/db"], "postgresql://user:secret@host/other")
    assert "secret" not in str(caught.value)
