"""Families of transformers: what is planned, applied and loaded is what a reference makes of the model.

A part of the product of families and operators; `table.py` runs it all and keeps what came of it.
"""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

from families.contract import ALL
from families.kinds import FAMILIES
from families.table import HOLDS, chosen, of_family, outcomes


@pytest.mark.parametrize(("name", "operators"), chosen(), ids=[name.replace(" ", "_") for name, _ in chosen()])
def test_comes_out_as_the_reference_has_it(name, operators, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that build models
        found = of_family(name, operators, tmp_path)
    kept = outcomes()[name]
    assert found == {operator: kept[operator] for operator in operators}


def test_enough_is_looked_at():
    assert len(FAMILIES) >= 40
    pairs = [(name, operator) for name, operators in chosen() for operator in operators]
    kept = outcomes()
    held = Counter(operator for name, operator in pairs if kept[name][operator] == HOLDS)
    assert set(held) == set(ALL)
    assert min(held.values()) >= 5
    assert set(kept) == set(FAMILIES)
