"""What `tailwise evaluate` writes beside its JSON: a part of a model card, and a page."""

from __future__ import annotations

import json
import shutil

import pytest
import typer

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.scores import ScoreComparison


@pytest.fixture
def command(tmp_path, monkeypatch):
    from tailwise.cli.evaluate_command import evaluate as evaluate_command

    monkeypatch.chdir(tmp_path)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(evaluate_command)
    return lambda *arguments: app([*map(str, arguments)], standalone_mode=False)


def test_one_run_writes_json_markdown_a_page_and_the_card(command, folder, story, tmp_path):
    pytest.importorskip("altair")
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "README.md").write_text("# Own\n")
    command(own, "--against", folder, "--text", story, "--window", 32, "--bos", "always", "--card", "-o", "x.json",
            "-o", "x.md", "-o", "x.html")  # fmt: skip
    found = ScoreComparison.load(tmp_path / "x.json")
    assert found.model.settings["bos"]
    assert found.divergence.kl == 0.0
    assert len(found.divergence.kl_by_window) == len(found.model.losses)
    text = (tmp_path / "x.md").read_text()
    card = (own / "README.md").read_text()
    assert card.startswith("# Own\n")
    assert text in card
    assert "mean KL divergence" in text
    assert "no difference seen (p = 1)" in text
    assert found.conclusion in text
    assert "Perplexity by bytes" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_model_that_is_no_folder_has_no_card_and_nothing_is_loaded(command, story):
    with pytest.raises(UsageError, match="model card"):
        command("org/nothing", "--text", story, "--card")


def test_other_suffixes_are_told(command, folder, story):
    with pytest.raises(UsageError, match=r"'\.csv' is not known") as caught:
        command(folder, "--text", story, "-o", "x.csv")
    assert ".html" in caught.value.fix


def test_a_plan_that_cannot_be_read_is_a_note(command, folder, story, tmp_path):
    own = shutil.copytree(folder, tmp_path / "own")
    (own / "tailwise_plan.json").write_text("{}")
    command(own, "--text", story, "--window", 32, "-o", "x.json")
    notes = json.loads((tmp_path / "x.json").read_text())["notes"]
    assert any("its plan was not read" in note for note in notes)
