"""The commands of the README on an install without extras: each works, or says in one line what it lacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Commands that the README of some day may not name, of every extra that a command may lack.
ALSO = [
    "tailwise audit examples/pycode-8m --no-cache",
    "tailwise plan prune pycode-8m.audit --sparsity 0.5 --allocator uniform -o plan.json",
    "tailwise plan prune pycode-8m.audit --sparsity 0.5 --calibration text.txt -o tried.json",
    "tailwise plan quantize pycode-8m.audit --bits 6 --formats int4,int8 -o bits.json",
    "tailwise apply plan.json examples/pycode-8m -o pruned --force",
    "tailwise apply bits.json examples/pycode-8m -o packed --packed compressed-tensors",
    "tailwise evaluate examples/pycode-8m --text text.txt",
    "tailwise recover pruned --text text.txt -o recovered",
    "tailwise report pycode-8m.audit -o report.html",
    "tailwise plot pycode-8m.audit --chart alpha_hist -o x.png",
    "tailwise precision examples/pycode-8m --formats bf16 -o precision --no-cache",
    "tailwise audit x.gguf",
    "tailwise audit x.onnx",
    "tailwise audit x.keras",
    "tailwise audit s3://bucket/model",
    "tailwise audit examples/pycode-8m --executor dask --no-cache",
    "tailwise audit examples/pycode-8m --executor ray --no-cache",
    "tailwise watch run --once --store h.db",
    "tailwise serve .",
    "tailwise mcp .",
    "tailwise ask pycode-8m.audit is-it-healthy",
    "tailwise doctor",
]
#: Not to be run here: what installs, tests, or never ends.
_NOT_HERE = re.compile(r"pip |pytest|serve|mcp|watch(?!.*--once)|postgresql://|--follow")
RUN = """
import json, sys, traceback
blocked = set(json.loads(sys.argv[1]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from typer.testing import CliRunner
from tailwise.cli.main import app
from tailwise.core.errors import TailwiseError
said = []
for line in json.loads(sys.argv[2]):
    done = CliRunner().invoke(app, line.split()[1:])
    error = done.exception
    expected = error is None or isinstance(error, (SystemExit, TailwiseError))
    trace = "" if expected else "".join(traceback.format_exception(error))
    text = str(error) if isinstance(error, TailwiseError) else ""
    said.append({"line": line, "code": done.exit_code, "error": text, "trace": trace, "output": done.output[-500:]})
print("SAID" + json.dumps(said))
"""


def normal(name):
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!;~ ]", name, maxsplit=1)[0]).lower()


def closure(names):
    """Distributions that these ask for, without extras."""
    found, left = set(), [normal(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            left += [normal(one) for one in requires(name) or () if "extra ==" not in one]
        except PackageNotFoundError:
            continue
    return found


def absent():
    """Modules that an install without extras has not."""
    there = closure(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    asked = {normal(one) for name, needs in extras.items() if name not in ("dev", "docs") for one in needs}
    gone = asked - there - {"tailwise"}
    return sorted(top for top, names in packages_distributions().items() if {normal(one) for one in names} <= gone)


def commands_of_readme():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("tailwise ") and not _NOT_HERE.search(line)]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    model = folder / "examples" / "pycode-8m"
    model.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.{part}.weight" for i in range(2) for part in ("mlp.up_proj", "self_attn.q_proj")]
    save_file({name: rng.standard_normal((64, 48)).astype(np.float32) for name in names}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    for name in ("x.gguf", "x.onnx", "x.keras"):
        begins = {"x.gguf": b"GGUF\3\0\0\0", "x.keras": b"PK\3\4"}.get(name, b"\x08\x07")
        (folder / name).write_bytes(begins + bytes(64))
    (folder / "text.txt").write_text("a text " * 400)
    (folder / "run").mkdir()
    lines = [ALSO[0], *(line for line in [*commands_of_readme(), *ALSO[1:]] if line != ALSO[0])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN, json.dumps(absent()), json.dumps(lines)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "SAID" in done.stdout, done.stderr
    return json.loads(done.stdout.partition("SAID")[2])


def test_the_extras_are_absent():
    gone = absent()
    assert {"transformers", "altair", "sqlalchemy", "gguf"} & set(gone)
    assert not {"torch", "numpy", "rich", "typer", "pyarrow", "tqdm", "yaml"} & set(gone)


def test_no_command_ends_in_a_traceback(said):
    assert [one["line"] + one["trace"] for one in said if one["trace"]] == []


def test_what_lacks_a_package_says_the_line_that_installs_it(said):
    lacking = [one for one in said if "pip install" in one["error"]]
    assert len(lacking) >= 8
    line = re.compile(r'pip install "tailwise\[\w+\]", or in a checkout pip install -e "\.\[\w+\]"')
    for one in lacking:
        assert one["error"].count("\n") <= 1, one
        assert line.search(one["error"]), one


def test_what_needs_no_extra_works(said):
    by_line = {one["line"]: one for one in said}
    for line in (ALSO[0], ALSO[1], ALSO[3], ALSO[4]):
        assert by_line[line]["code"] == 0, by_line[line]


def test_an_extra_for_all_asks_for_extras_that_there_are():
    extras = PROJECT["optional-dependencies"]
    (asked,) = re.findall(r"tailwise\[([\w,]+)\]", extras["all"][0])
    assert set(asked.split(",")) <= set(extras)
    assert {"report", "app", "hf", "frames", "history", "gguf"} <= set(asked.split(","))
