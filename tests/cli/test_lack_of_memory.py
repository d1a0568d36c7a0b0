"""Under a limit of memory a command ends with a row or one message, not with a signal and not with a traceback."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import tailwise as tw
from tailwise.audits.work import failure
from tailwise.core.errors import TailwiseError, UnreadableError, lacks_memory


@pytest.mark.parametrize("megabytes", [500, 900, 1024, 1200])
def test_an_audit_under_a_limit_of_addresses_says_so(tmp_path, megabytes):
    rng = np.random.default_rng(0)
    weights = {f"layers.{n}.w": rng.standard_normal((600, 500)).astype(np.float32) for n in range(3)}
    save_file(weights, tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", "from tailwise.cli.main import run; run()", "audit", "model.safetensors",
         "--workers", "2", "-o", "out.audit"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2),
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 3:
        assert "memory" in done.stderr + done.stdout


COMMANDS = {
    "report": ["report", "m.audit", "-o", "r.html"],
    "precision": ["precision", "model.safetensors", "--formats", "int8", "-o", "study"],
    "diagnose": ["diagnose", "m.audit"],
    "plan": ["plan", "prune", "m.audit", "--sparsity", "0.5", "-o", "p.json"],
    "compare": ["compare", "m.audit", "m.audit"],
}


@pytest.mark.parametrize(
    ("command", "megabytes"), [*((name, 1024) for name in COMMANDS), ("diagnose", 600), ("diagnose", 1500),
                               ("precision", 1500)]
)  # fmt: skip
def test_no_command_ends_by_a_signal_or_without_end_under_a_limit(tmp_path, command, megabytes):
    """V8, Arrow and MKL abort where they find no room, and OpenBLAS tries for ever with more threads than one."""
    weights = {f"layers.{n}.w": np.random.default_rng(n).standard_normal((60, 50)).astype(np.float32) for n in range(3)}
    save_file(weights, tmp_path / "model.safetensors")
    tw.audit(tmp_path / "model.safetensors", use_cache=False).save(tmp_path / "m.audit")
    done = under(megabytes, tmp_path, *COMMANDS[command])
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 3:
        assert "memory" in done.stderr


def under(megabytes, folder, *arguments, before=""):
    return subprocess.run(
        [sys.executable, "-P", "-c", f"{before}\nfrom tailwise.cli.main import run; run()", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2),
    )  # fmt: skip


@pytest.mark.parametrize(("sent", "code"), [("SIGABRT", 3), ("SIGSEGV", 3), ("SIGKILL", -9), ("SIGTERM", -15)])
def test_a_signal_is_told_where_a_library_sends_it_and_passed_on_where_another_does(tmp_path, sent, code):
    before = (
        "import os, signal, tailwise.cli.main as main\n"
        f"main._run_to_the_end = lambda: os.kill(os.getpid(), signal.{sent})"
    )
    done = under(4096, tmp_path, "metrics", before=before)
    assert done.returncode == code, done.stderr
    assert (sent in done.stderr) == (code == 3)


def test_exit_codes_and_output_are_the_command_s_own_under_a_limit(tmp_path):
    assert "alpha" in under(4096, tmp_path, "metrics").stdout
    absent = under(4096, tmp_path, "show", "absent.audit")
    assert absent.returncode == 3
    assert "no such audit" in absent.stderr
    assert under(4096, tmp_path, "show", "--what").returncode == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_every_library_s_words_for_it_are_known(error):
    assert lacks_memory(error)
    assert failure(error) == ("FAILED", "out of memory; use fewer workers")


@pytest.mark.parametrize(
    "error", [ValueError("can't allocate memory"), ImportError("no module x"), OSError(28, "full")]
)
def test_other_faults_are_not_called_that(error):
    assert not lacks_memory(error)
    assert not issubclass(type(error), TailwiseError)
    assert UnreadableError.exit_code == 3
