"""`tailwise apply --packed`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tailwise.cli.main import app

pytest.importorskip("compressed_tensors")
RUN = CliRunner()


@pytest.fixture(scope="module")
def plan(pycode, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    found = RUN.invoke(app, ["plan", "quantize", str(pycode), "--formats", "int4-g64", "-o", str(path)])
    assert found.exit_code == 0, found.output
    return path


def test_the_sizes_are_told(plan, pycode, tmp_path):
    out = tmp_path / "out"
    found = RUN.invoke(app, ["apply", str(plan), str(pycode), "-o", str(out), "--packed", "compressed-tensors"])
    assert found.exit_code == 0, found.output
    assert "bytes before" in found.output
    found = RUN.invoke(
        app, ["apply", str(plan), str(pycode), "-o", str(out), "--packed", "compressed-tensors", "--force", "--json"]
    )
    facts = json.loads(found.stdout)
    assert facts["bytes_after"] == (out / "model.safetensors").stat().st_size
    assert facts["packed"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--packed", "gptq"], "no packing named 'gptq'"),
        (["--packed", "gguf"], "has no type for int4-g64"),
    ],
)
def test_what_is_wrong_is_told(plan, pycode, tmp_path, options, said):
    found = RUN.invoke(app, ["apply", str(plan), str(pycode), "-o", str(tmp_path / "out"), *options])
    assert found.exit_code != 0
    assert said in str(found.exception)
