"""Commands take an executor by name, and refuse one that there is not before any work."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "line",
    [
        ("audit", "{model}", "--executor", "spark"),
        ("plan", "prune", "{model}", "--sparsity", "0.5", "--executor", "spark"),
        ("plan", "quantize", "{model}", "--bits", "4.5", "--executor", "spark"),
    ],
)
def test_an_unknown_executor_is_a_wrong_use(call, pycode, line):
    code, out, err = call(*(word.format(model=pycode) for word in line))
    assert code == 2
    assert "there is no executor 'spark'" in err
    assert out == ""


@pytest.mark.parametrize("executor", ["local://here", "dask://scheduler", "dask:scheduler:8786", "ray://", "Dask"])
def test_an_address_that_no_engine_has_is_a_wrong_use(call, pycode, executor):
    code, _, err = call("audit", pycode, "--executor", executor)
    assert code == 2
    assert "choose local, dask, dask://scheduler:8786" in err


def test_audit_says_what_is_missing_where_an_engine_is_not_installed(call, pycode, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    code, _, err = call("audit", pycode, "--executor", "dask")
    assert code == 2
    assert 'pip install "tailwise[dask]"' in err
