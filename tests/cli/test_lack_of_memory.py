"""Under a limit of memory a command ends with a row or one message, not with a signal and not with a traceback."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

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
