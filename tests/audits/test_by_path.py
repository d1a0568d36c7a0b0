"""Verbs that take audits take their paths as well, as the command line does."""

from __future__ import annotations

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.errors import UsageError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two audits, and their paths."""
    place = tmp_path_factory.mktemp("audits")
    found = []
    for name in ("a", "b"):
        weights = {f"layers.{i}.weight": RNG.standard_normal((70, 60)) for i in range(3)}
        audit = tw.audit(weights, use_cache=False, baseline_replicas=2)
        audit.save(place / f"{name}.audit")
        found.append((audit, place / f"{name}.audit"))
    return found


def test_each_verb_says_the_same_of_an_audit_and_of_its_path(given, tmp_path):
    (a, path_a), (b, path_b) = given
    assert tw.diagnose(path_a).findings == tw.diagnose(a).findings
    assert tw.diagnose(str(path_a), mute="TW2xx", base=path_b).model == a.model
    assert tw.compare(path_a, str(path_b)).to_json() == tw.compare(a, b).to_json()
    assert tw.rank([path_a, path_b]).to_json() == tw.rank([a, b]).to_json()
    gates = tmp_path / "gates.toml"
    gates.write_text('expect = ["alpha in [1, 90]"]\n')
    assert tw.check(path_a, gates).outcomes == tw.check(a, gates).outcomes
    assert tw.plot("alpha_hist", path_a).to_dict() == a.plot("alpha_hist").to_dict()


@pytest.mark.parametrize("wrong", [3, None, {"layer": np.ones((4, 4))}])
def test_what_is_no_audit_is_told(wrong):
    for verb in (tw.diagnose, lambda one: tw.compare(one, one), lambda one: tw.rank([one, one])):
        with pytest.raises(UsageError, match="no audit"):
            verb(wrong)
