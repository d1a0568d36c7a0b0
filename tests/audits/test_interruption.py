"""An audit that is killed goes on where it was, and audits that run at once do not disturb each other."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw

VOLATILE = ["reused", "seconds"]
MATRICES = 14

#: Prints a line per finished matrix; after the given number it waits to be killed.
CHILD = """
import sys
import tailwise as tw

model, cache, stop_after, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def tell(step):
    if step.row is not None:
        print(step.row.name, step.row.reused, flush=True)
    if step.done == stop_after:
        sys.stdin.read()

audit = tw.audit(model, cache_dir=__import__("pathlib").Path(cache), workers=2, randomize=1, progress=tell)
audit.save(out)
"""


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.mlp.up_proj.weight": rng.standard_normal((160 + i, 150)) for i in range(MATRICES)}
    save_file({name: torch.from_numpy(weight) for name, weight in tensors.items()}, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


@pytest.fixture
def start(model, tmp_path):
    """(stop_after, out) → a process that audits the model into a cache shared by all of them."""
    processes = []

    def run(stop_after: int, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", CHILD, model, str(tmp_path / "cache"), str(stop_after)]
        process = subprocess.Popen(
            [*command, str(tmp_path / out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def table(audit: tw.Audit):
    return audit.table(unmeasured=True).arrow.drop_columns(VOLATILE)


@pytest.fixture
def uninterrupted(model):
    return tw.audit(model, randomize=1, use_cache=False)


def test_an_audit_that_was_killed_goes_on_where_it_was(model, start, uninterrupted, tmp_path):
    process = start(4, "never.audit")
    seen = [process.stdout.readline() for _ in range(4)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert all(line.endswith("False\n") for line in seen)
    assert not (tmp_path / "never.audit").exists()

    resumed = tw.audit(model, randomize=1, cache_dir=tmp_path / "cache")
    assert 4 <= resumed.provenance.reused < MATRICES
    done = {line.split()[0] for line in seen}
    assert done <= {row.name for row in resumed.rows if row.reused}
    assert table(resumed).equals(table(uninterrupted))
    for one, other in zip(resumed, uninterrupted, strict=True):
        assert one.spectrum.eigenvalues.tobytes() == other.spectrum.eigenvalues.tobytes()
        assert one.permuted[0].eigenvalues.tobytes() == other.permuted[0].eigenvalues.tobytes()


def test_half_written_files_of_a_killed_audit_are_never_read(model, uninterrupted, tmp_path):
    cache = tmp_path / "cache"
    tw.audit(model, randomize=1, cache_dir=cache)
    for path in list(cache.rglob("*.npz")):
        (path.parent / ".new-abc").write_bytes(path.read_bytes()[:100])
        path.unlink()
    resumed = tw.audit(model, randomize=1, cache_dir=cache)
    assert resumed.provenance.reused == 0
    assert table(resumed).equals(table(uninterrupted))


def test_two_audits_at_once_share_a_cache_and_give_the_same_table(start, uninterrupted, tmp_path):
    processes = [start(-1, f"{name}.audit") for name in ("one", "other")]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    for name in ("one", "other"):
        assert table(tw.Audit.load(tmp_path / f"{name}.audit")).equals(table(uninterrupted))
    assert not list((tmp_path / "cache").rglob(".new-*"))


def test_an_exception_in_the_progress_callback_stops_the_audit_and_keeps_what_was_done(model, tmp_path):
    def stop(step):
        if step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tw.audit(model, cache_dir=tmp_path / "cache", workers=2, progress=stop)
    resumed = tw.audit(model, cache_dir=tmp_path / "cache")
    assert 3 <= resumed.provenance.reused < MATRICES


def test_progress_counts_every_matrix_once_and_ends_at_the_totals(model):
    steps = []
    audit = tw.audit(model, use_cache=False, workers=2, progress=steps.append)
    assert steps[0].row is None
    assert [step.done for step in steps] == list(range(MATRICES + 1))
    assert {step.row.name for step in steps[1:]} == {row.name for row in audit.rows}
    last = steps[-1]
    assert (last.done, last.bytes_done) == (last.total, last.bytes_total)
    assert last.flops_done == pytest.approx(last.flops_total)
