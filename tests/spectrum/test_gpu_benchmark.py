"""The benchmark of a GPU runs where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_benchmark_runs_small_on_a_cpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--small"]
    command += ["--folder", str(tmp_path), "--output", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["audits"]["float64"]["alpha"] <= 1e-4
    assert facts["audits"]["float64"]["matrices"] == 23
    assert "| audit, float64, every metric |" in done.stdout
