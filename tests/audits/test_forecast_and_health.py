"""A forecast reads no weight, and one fault of an installation hides no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.audits import installation as health
from tailwise.audits.cache import default_folder
from tailwise.audits.cost import forecast
from tailwise.audits.run import prepare
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

WEIGHTS = {f"layers.{i}.mlp.up_proj.weight": np.random.default_rng(i).standard_normal((40, 30)) for i in range(3)}


class Watched(Checkpoint):
    """Tensors with an identity, that count the reads."""

    uri, format, config, metadata = "watched", "memory", {}, {}

    def __init__(self):
        self.tensors = {name: TensorSpec(name, "F64", (40, 30), 9600) for name in WEIGHTS}
        self.reads = 0

    def read_rows(self, name, start, stop):
        self.reads += 1
        return torch.from_numpy(WEIGHTS[name][start:stop])

    def identity(self, name):
        return f"watched {name}"


def test_a_forecast_reads_no_weight_and_knows_what_is_kept():
    checkpoint = Watched()
    before = forecast(checkpoint, prepare(checkpoint))
    assert checkpoint.reads == 0
    assert (before["matrices"], before["cached"], before["bytes"], before["unmeasured"]) == (3, 0, 3 * 9600, 0)
    assert before["seconds"] > 0
    assert before["memory"] > 0
    tw.audit(checkpoint, layers=r"layers\.[01]\.")
    reads = checkpoint.reads
    after = forecast(checkpoint, prepare(checkpoint))
    assert (after["cached"], checkpoint.reads) == (2, reads)
    assert after["seconds"] > 0
    again = forecast(checkpoint, prepare(checkpoint, tw.Recipe(randomize=1)))
    assert again["cached"] == 0


def test_a_forecast_for_a_device_that_is_not_here_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = Watched()
    options = tw.RunOptions(device="cuda", executor="ray")
    with pytest.raises(tw.UsageError, match="no CUDA device"):
        forecast(checkpoint, prepare(checkpoint, options=options))


def test_a_sound_installation_passes_every_check_that_is_not_optional():
    checks = health.check()
    assert {"python", "tailwise", "torch", "solver", "cache"} <= {check.name for check in checks}
    assert [check for check in checks if not check.ok and not check.optional] == []


def test_one_failing_check_hides_no_other(monkeypatch):
    def broken():
        raise ArithmeticError("two and two are five")

    monkeypatch.setattr(health, "_solver", broken)
    found = {check.name: check for check in health.check()}
    assert not found["solver"].ok
    assert "two and two are five" in found["solver"].detail
    assert found["cache"].ok


def test_clearing_removes_what_was_kept_and_nothing_else():
    tw.audit(WEIGHTS)
    (default_folder() / "notes.txt").write_text("mine")
    removed = health.clear()
    assert removed == 3 + 1  # three spectra and the baseline of their shape
    assert [path.name for path in default_folder().rglob("*") if path.is_file()] == ["notes.txt"]
    assert tw.audit(WEIGHTS).provenance.reused == 0
