"""Two processes that train one model, over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tailwise as tw

KINDS = ("ddp", "fsdp", "fsdp-partly", "fsdp-blind", "fsdp-stages", "fsdp1")
SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder for each kind of run, all of which one pair of processes made."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), "2", *KINDS],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=900)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    return folder


def run_of(folder: Path):
    """The points that were written, and each rank's report."""
    lines = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    points = [line for line in lines if "cadence" in line]  # the others are alarms
    return points, [json.loads((folder / f"report{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_rank_0_emits_points_of_the_whole_model(kind, trained):
    points, reports = run_of(trained / kind)
    assert [report["errors"] for report in reports] == [[], []]
    assert reports[1]["points"] == 0
    assert sorted((point["cadence"], point["step"]) for point in points if point["cadence"] == "cheap") == [
        ("cheap", step) for step in (0, 2, 4, 6, 8)
    ]
    assert {0, 4} <= {point["step"] for point in points if point["cadence"] == "full"}
    assert all(set(point["layers"]) == {"0", "2", "4"} for point in points)
    weights = torch.load(trained / kind / "weights.pt")
    last = next(point for point in points if point["cadence"] == "cheap" and point["step"] == 8)
    for name in ("0", "2", "4"):
        W, old = weights["after"][f"{name}.weight"], weights["before"][f"{name}.weight"]
        assert last["layers"][name]["frobenius_norm"] == pytest.approx(float(W.norm()), rel=1e-5)
        assert last["layers"][name]["update_ratio"] == pytest.approx(float((W - old).norm() / W.norm()), rel=1e-4)
        gradient = weights["before"][f"grad {name}.weight"]
        assert last["layers"][name]["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    scalars = [last["scalars"][f"loss{end}"] for end in ("", "_min", "_mean", "_max")]
    assert scalars == [8.0, 7.0, 7.5, 8.0]
    # The full and the cheap point of a step come in any order; the run's first has the note.
    assert any("optimizer: SGD" in point["notes"] for point in points if point["step"] == 0)
    full = [point for point in points if point["cadence"] == "full"][-1]
    if full["step"] == 8:
        audit = tw.audit({name: W.numpy() for name, W in weights["after"].items()}, use_cache=False)
        for name in ("0", "2", "4"):
            assert full["layers"][name]["alpha"] == pytest.approx(audit[name].alpha, rel=1e-6)


def test_a_matrix_that_one_rank_cannot_measure_costs_no_other(trained):
    points, reports = run_of(trained / "fsdp-partly")
    assert reports[0]["errors"] == []
    assert all("broken on one rank" in error for error in reports[1]["errors"])
    last = next(point for point in points if point["cadence"] == "cheap" and point["step"] == 8)
    norms = {name: values["frobenius_norm"] for name, values in last["layers"].items()}
    assert None in norms.values()
    assert any(norms.values())
    assert any("not finite" in note for note in last["notes"])
    lines = (trained / "fsdp-partly" / "points.jsonl").read_text().splitlines()
    assert "TW701" in {json.loads(line).get("rule") for line in lines}


def test_where_one_rank_cannot_read_the_model_all_stop_watching_and_the_training_ends(trained):
    points, reports = run_of(trained / "fsdp-blind")
    assert reports[0]["errors"] == []
    assert "broken on one rank" in reports[1]["errors"][0]
    assert {point["step"] for point in points} == {0}


def test_ranks_with_different_matrices_stop_watching_before_they_gather_any(trained):
    points, reports = run_of(trained / "fsdp-stages")
    assert points == []
    assert [report["errors"] for report in reports] == [[], []]


def test_flat_pieces_of_weights_are_refused_on_every_rank_before_one_waits_for_another(trained):
    said = [(trained / "fsdp1" / f"refused{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "FSDP1" in said[0]
    assert "fully_shard" in said[0]
