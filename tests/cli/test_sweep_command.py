"""`tailwise sweep`: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from rich.live import Live
from safetensors.torch import save_file

from tailwise.cli.sweep_command import SweepScreen
from tailwise.history.sweep.catalogue import Catalogue, ClaimedModel
from tailwise.history.sweep.one_model import ModelOutcome
from tailwise.history.sweep.status import status_of
from tailwise.history.sweep.sweeping import Sweep, sweep


@pytest.fixture
def models(tmp_path) -> list[str]:
    """Paths of three models, and a list of them."""
    for seed in range(3):
        folder = tmp_path / f"model-{seed}"
        folder.mkdir()
        weight = torch.randn(40, 30 + seed, generator=torch.Generator().manual_seed(seed))
        save_file({"layers.0.mlp.up_proj.weight": weight}, folder / "model.safetensors")
    names = [f"model-{seed}" for seed in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    return names


def test_a_list_becomes_results_that_can_be_ranked(call, models, tmp_path):
    code, out, err = call("sweep", "list.txt", "-o", "out")
    assert code == 0, err
    assert all(f"{model}: 1 matrices" in out for model in models)
    assert "3 of 3" in out
    assert "tailwise rank" in out
    code, out, err = call("rank", "out", "-o", "board.csv")
    assert code == 0, err
    assert len((tmp_path / "board.csv").read_text().splitlines()) == 4
    code, out, _ = call("sweep", "list.txt", "-o", "out")
    assert code == 0
    assert "1 matrices" not in out  # nothing is done twice


def test_a_results_folder_may_be_ranked_beside_audits(call, models):
    call("sweep", "list.txt", "-o", "out")
    call("audit", "model-0", "-o", "more.audit")
    code, out, _ = call("rank", "out", "more.audit", "--json")
    assert code == 0
    assert len(json.loads(out)["models"]) == 4


def test_a_bad_model_is_a_line_and_the_exit_code(call, models, tmp_path):
    (tmp_path / "list.txt").write_text("model-0\nnothing/at/all\nmodel-1\n")
    code, out, _ = call("sweep", "list.txt", "-o", "out")
    assert code == 3
    assert "nothing/at/all: FAILED: no such file or folder" in out
    assert "→ check the path" in out
    code, out, _ = call("sweep", "list.txt", "-o", "out", "--status", "--json")
    assert code == 0
    status = json.loads(out)
    assert (status["total"], status["done"], status["failed"]) == (3, 2, 1)
    assert status["troubles"][0]["model"] == "nothing/at/all"
    (tmp_path / "nothing" / "at").mkdir(parents=True)
    (tmp_path / "model-2").rename(tmp_path / "nothing" / "at" / "all")
    code, out, _ = call("sweep", "list.txt", "-o", "out", "--retry", "--json")
    assert code == 0
    assert json.loads(out)["done"] == 3


def test_a_dry_run_costs_nothing_and_says_what_it_would(call, models, tmp_path):
    (tmp_path / "list.txt").write_text("model-0\nmodel-1\nnothing/at/all\n")
    code, out, err = call("sweep", "list.txt", "-o", "out", "--dry-run", "--price", "0.1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["models"], found["cost"]["matrices"], len(found["unreadable"])) == (3, 2, 1)
    assert found["dollars"] > 0
    assert not (tmp_path / "out").exists()
    code, out, _ = call("sweep", "list.txt", "--dry-run")
    assert "not read" in out
    assert "dollars" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lease", "0"), "the lease is 0"),
        (("-o", "s3://bucket/x"), "cannot lie in an object store"),
        (("--estimator", "nonsense"), "no estimator named"),
        (("--status",), "no such store"),
    ],
)
def test_wrong_requests_say_what_to_do(call, models, arguments, said):
    code, _, err = call("sweep", "list.txt", *arguments)
    assert code in (2, 3)
    assert said in err
    assert "→" in err


def test_workers_share_a_catalogue_by_its_address(call, models, postgres, tmp_path):
    where = postgres.new_store()
    code, _, err = call("sweep", "list.txt", "-o", "out", "--catalogue", where, "--name", "mine")
    assert code == 0, err
    assert not (tmp_path / "out" / "catalogue.db").exists()
    code, out, _ = call("sweep", "list.txt", "-o", "out", "--catalogue", where, "--name", "mine", "--status")
    assert code == 0
    assert "3 of 3" in out


def test_the_dashboard_shows_what_is_under_way(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to = Sweep.at("s", "out")
    sweep(models[:1], to)
    with Catalogue(to.catalogue) as catalogue:
        catalogue.enroll("s", to.folder, json.loads(_question(catalogue)), models)
        catalogue.claim("s", "host:1:abc", 60.0)
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=100, color_system=None)
        with Live(console=console, auto_refresh=False) as live:
            shown = SweepScreen(console, lambda: status_of(catalogue, "s"), live)
            step = shown.begun(ClaimedModel(1, "s", "model-1", "host:1:abc", 1))
            step(type("Step", (), {"done": 1, "total": 2}))
            live.refresh()
            shown.ended(ModelOutcome("model-1", "failed", "torn", "download it again"))
    text = file.getvalue()
    assert "1 of 3" in text
    assert "model-1  (host:1)" in text
    assert "time left" in text
    assert "model-1: FAILED: torn" in text


def _question(catalogue: Catalogue) -> str:
    from sqlalchemy import select

    from tailwise.history.sweep.sql_tables import SWEEPS

    with catalogue._engine.connect() as connection:
        return connection.execute(select(SWEEPS.c.question)).scalar_one()
