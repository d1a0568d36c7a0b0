"""Python that lies in the current folder, among a model's files, never runs: not for the command, jobs or uploads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tailwise
from tailwise.app.jobs.job import Job
from tailwise.app.jobs.process import arguments, environment

#: Modules that are imported early, late, only by some readers, or by name.
NAMES = ("numpy", "torch", "json", "logging", "gguf", "onnx", "h5py", "yaml", "pyarrow", "rich", "typer", "runpy")


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """A folder with a model and with modules that leave a marker when they are imported."""
    marker = tmp_path / "marker"
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write(__name__)\n")
    np.savez(folder / "m.npz", **{"l.weight": np.random.default_rng(0).standard_normal((16, 12))})
    monkeypatch.chdir(folder)
    return marker


def run(command):
    own = str(Path(tailwise.__file__).parents[1])
    # An empty part of PYTHONPATH would mean the current folder.
    paths = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {**environment(), "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.PIPE, check=False)


def test_the_module_on_the_command_line(trapped):
    done = run([sys.executable, "-m", "tailwise", "audit", "m.npz", "-o", "out.audit"])
    assert done.returncode == 0, done.stderr
    assert not trapped.exists()


def test_a_job_of_the_server(trapped):
    pytest.importorskip("fastapi")
    command = arguments(Job("1", "absent.npz", "job.audit", {}), 1)  # one that ends early: what counts is how it begins
    own = str(Path(tailwise.__file__).parents[1])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
        env={**environment(), "PYTHONPATH": own},
    ) as process:  # fmt: skip
        said = process.stderr.read()
    assert process.returncode == 3, said
    assert "no such file" in said
    assert not trapped.exists()


def test_the_reader_of_uploads(trapped):
    pytest.importorskip("fastapi")
    from tailwise.app import uploads

    audit = tailwise.audit({"w": np.eye(12)}, use_cache=False).save(Path("up.audit"))
    uploads.check(Path(audit).resolve(), 1 << 30)
    assert not trapped.exists()


def test_every_process_that_is_started_looks_nowhere_else():
    """`[sys.executable, "-P", …]`: a scan, so that the next one is written so, too."""
    started = []
    for path in Path(tailwise.__file__).parent.rglob("*.py"):
        started += re.findall(r"\[sys\.executable, ([^,]+)", path.read_text(encoding="utf-8"))
    assert started
    assert {*started} == {'"-P"'}
