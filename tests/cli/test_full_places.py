"""No room on a disk, for outputs, for the cache or for what is temporary: one message, and nothing half written."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import tailwise as tw
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.history.jsonl import JsonlHistory
from tailwise.history.point import Point

COMMANDS = {
    "audit": ["audit", "model", "-o", "out.audit", "--no-cache"],
    "audit, with a cache": ["audit", "model", "-o", "out.audit"],
    "show": ["show", "m.audit", "-o", "out.csv"],
    "report": ["report", "m.audit", "-o", "out.html"],
    "apply": ["apply", "p.json", "model", "-o", "out"],
    "plan": ["plan", "prune", "m.audit", "--sparsity", "0.5", "-o", "out.json"],
    "store": ["store", "import", "h.jsonl", "--store", "out.db"],
}


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    weights = {f"model.layers.{n}.mlp.up_proj.weight": rng.standard_normal((60, 50)) for n in range(20)}
    (tmp_path / "model").mkdir()
    save_file(weights, tmp_path / "model" / "model.safetensors")
    audit = tw.audit(tmp_path / "model", use_cache=False)
    audit.save(tmp_path / "m.audit")
    plan_prune(audit, Request(0.5, "uniform", "magnitude")).save(tmp_path / "p.json")
    with JsonlHistory(tmp_path / "h.jsonl") as lines:
        for step in range(20):
            lines.append(Point("r", step, "full", 1.8e9, {"l": {"alpha": 2.0}}))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_grow_is_one_message(place, command, monkeypatch):
    """A limit on the size of files stands for a disk that fills up, in every folder at once."""
    monkeypatch.setenv("TAILWISE_CACHE", str(place / "cache"))
    monkeypatch.setenv("TMPDIR", str(place))
    before = {path.name for path in place.iterdir()}
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from tailwise.cli.main import run; run()", *COMMANDS[command]],
        cwd=place, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 3), (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("tailwise: ")
    assert {path.name for path in place.iterdir()} - before <= {"cache", "out.db", "out.db-wal", "out.db-shm"}
