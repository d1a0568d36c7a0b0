"""The examples of docstrings run, and the reference has an entry for every public name."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import warnings
from pathlib import Path

import pytest

import tailwise as tw

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
REFERENCE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ROOMS = ("auditing", "comparing", "diagnosing", "extend", "gates", "plans", "precision", "runs", "scoring")


def with_examples():
    found = []
    for path in sorted((SOURCE / "tailwise").rglob("*.py")):
        if re.search(r"^\s+>>> |^>>> ", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("module", with_examples())
def test_examples_give_what_they_say(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = importlib.import_module(module)
    with warnings.catch_warnings():
        flags = doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
        done = doctest.testmod(loaded, optionflags=flags, extraglobs={"__name__": "notebook"})
    assert done.attempted
    assert done.failed == 0


@pytest.mark.parametrize(
    "name", ["Audit", "Layer", "alpha_hill", "audit", "check", "compare", "diagnose", "esd", "fit_tail", "metric",
             "rank", "singular_entropy", "stable_rank", "table", "plans.plan_prune", "plans.plan_quantize",
             "plans.Plan", "precision.study", "runs.History", "runs.Alarms", "extend.unregister", "Monitor"],
)  # fmt: skip
def test_what_matters_has_an_example(name):
    item = tw
    for part in name.split("."):
        item = getattr(item, part)
    assert ">>> " in (inspect.getdoc(item) or "")


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_of_a_module_leads_somewhere_and_is_in_the_reference(room):
    module = getattr(tw, room)
    assert f"\n## tailwise.{room}\n" in REFERENCE
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert re.search(rf"(?m)^### {name}$", REFERENCE), f"{room}.{name}"


def test_every_public_name_is_in_the_reference():
    for name in set(tw.__all__) - {"__version__"}:
        assert f"\n### {name}\n" in REFERENCE


def test_what_public_functions_take_and_give_is_public():
    """Every class of this package that an annotation of a public function names is in `tw.` or a named module."""
    public = set(tw.__all__) | {name for room in ROOMS for name in getattr(tw, room).__all__}
    internal = {"Weights", "ArrayLike"}
    lost = {}
    for where in (tw, *(getattr(tw, room) for room in ROOMS if room != "extend")):
        for name in where.__all__:
            function = inspect.unwrap(getattr(where, name)) if callable(getattr(where, name)) else None
            if not inspect.isfunction(function):
                continue
            kinds = " ".join(map(str, function.__annotations__.values()))
            words = set(re.findall(r"\b[A-Z]\w+", kinds))
            for word in words - public - internal:
                kind = inspect.getmodule(function).__dict__.get(word)
                if inspect.isclass(kind) and kind.__module__.startswith("tailwise"):
                    lost[name] = word
    assert lost == {}
