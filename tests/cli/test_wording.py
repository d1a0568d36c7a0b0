"""Messages name options on the command line and arguments in Python, and both exist."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tailwise as tw
from tailwise.cli.main import app
from tailwise.core.spoken import _OPTION, ARGUMENTS, SWITCHES, in_python

SOURCE = Path(tw.__file__).parent
ROOMS = ("auditing", "comparing", "diagnosing", "gates", "plans", "precision", "runs", "scoring")
#: Rooms whose functions are called by commands alone, and what those commands are told.
ELSEWHERE = {"cli", "app", "report"}
OF_COMMANDS = {
    "store",
    "run",
    "revisions",
    "catalogue",
    "name",
    "metric",
    "model",
    "blocks",
    "experts",
    "json",
    "count",
}
#: Options of other programs: AutoRound's, llama-quantize's.
THEIRS = {"layer-config", "imatrix", "allow-requantize", "tensor-type-file"}


@pytest.mark.parametrize(
    ("message", "python"),
    [
        ("give --base AUDIT", "give base=AUDIT"),
        ("leave --pattern out, or take another operator", "leave pattern out, or take another operator"),
        ("plan with --operator rtn", "plan with operator='rtn'"),
        ("use --samples 128 --window 512", "use samples=128 window=512"),
        ("use --window 3 or more", "use window=3 or more"),
        ("replace it with --force", "replace it with force=True"),
        ("leave --no-clamp out", "leave clamp=False out"),
        ("use --formats mxfp4,mxfp8,bf16", "use formats='mxfp4,mxfp8,bf16'"),
        ("give --weights alpha=1,depth=0.5", "give weights='alpha=1,depth=0.5'"),
        ("run `tailwise audit MODEL --bootstrap 200`", "run `tailwise audit MODEL --bootstrap 200`"),
        ("pip install --upgrade tailwise", "pip install --upgrade tailwise"),
        ("(tailwise plan quantize M --formats fp32 --dequantize, then apply)",
         "(tailwise plan quantize M --formats fp32 --dequantize, then apply)"),
        ("a — b -- c", "a — b -- c"),
    ],
)  # fmt: skip
def test_options_are_arguments_in_python(message, python):
    assert in_python(message) == python


def argument_names():
    found = set()
    for module in (tw, *(getattr(tw, room) for room in ROOMS)):
        for name in module.__all__:
            item = getattr(module, name)
            if dataclasses.is_dataclass(item):
                found |= {one.name for one in dataclasses.fields(item)}
            elif callable(item):
                try:
                    found |= set(inspect.signature(item).parameters)
                except (TypeError, ValueError):
                    continue
    return found


def messages():
    """Strings of the source that name an option and are no docstring."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] in ELSEWHERE or path.name == "spoken.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                left = in_python(node.value)
                for option in _OPTION.finditer(node.value):
                    if f"--{option['name']}" not in left:
                        yield path.name, option["name"]


def argument_of(option):
    """The name that an option has in Python."""
    plain = option.removeprefix("no-") if option in SWITCHES else option
    return ARGUMENTS.get(option, plain).replace("-", "_")


def test_every_option_of_a_message_is_an_argument_of_something_public():
    known, found = argument_names() | OF_COMMANDS, list(messages())
    assert len(found) > 60
    lost = {(file, option) for file, option in found if option not in THEIRS and argument_of(option) not in known}
    assert lost == set()


def test_an_error_speaks_to_who_asked(tmp_path):
    with pytest.raises(tw.UsageError, match="give sparsity, e"):
        tw.plans.Request()
    audit = tw.audit({"model.layers.0.mlp.up_proj.weight": np.eye(60)}, use_cache=False)
    path = str(audit.save(tmp_path / "a.audit"))
    done = CliRunner().invoke(app, ["plan", "prune", path])
    assert "give --sparsity" in str(done.exception)
    with pytest.raises(tw.UsageError, match="give sparsity, e"):
        tw.plans.Request()
