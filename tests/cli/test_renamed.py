"""One name in Python and on the command line; the old one is taken, and told of."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import tailwise as tw
from tailwise.cli.main import app

W = {"up.weight": np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)}


@pytest.fixture
def model(tmp_path):
    save_file(W, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def recipe_of(model, *options):
    done = CliRunner().invoke(app, ["audit", model, "--no-cache", "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["provenance"]["recipe"], done.stderr


@pytest.mark.parametrize(
    ("options", "field", "value", "told"),
    [
        (["--precision", "float32"], "precision", "float32", ""),
        (["--dtype", "float32"], "precision", "float32", "--dtype is called --precision now"),
        (["--dtype=float32"], "precision", "float32", "--dtype is called --precision now"),
        (["--randomize"], "randomize", 1, ""),
        (["--randomize", "3"], "randomize", 3, ""),
        (["--randomize=3"], "randomize", 3, ""),
        (["--randomize", "--replicas", "2"], "randomize", 2, "--replicas N is --randomize N now"),
    ],
)
def test_old_names_are_taken_and_told_of(model, options, field, value, told):
    recipe, stderr = recipe_of(model, *options)
    assert recipe[field] == value
    assert told in stderr
    assert ("now" in stderr) is bool(told)


@pytest.mark.parametrize(
    ("settings", "old"),
    [({"dtype": "float32"}, "dtype"), ({"replicas": 2}, "replicas"), ({"randomize": True, "replicas": 2}, "replicas")],
)
def test_python_takes_them_too(settings, old):
    with pytest.warns(DeprecationWarning, match=f"{old} is called"):
        recipe = tw.audit(W, use_cache=False, baseline_replicas=1, **settings).provenance.recipe
    assert recipe["precision" if old == "dtype" else "randomize"] == next(reversed(settings.values()))


def test_a_switch_is_one_permutation():
    assert tw.audit(W, use_cache=False, baseline_replicas=1, randomize=True).provenance.recipe["randomize"] == 1
