"""The search for the step at which something began."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwise.cli.history_commands import _verdict
from tailwise.core.errors import UsageError
from tailwise.history.runs.bisect import Onset, bisect
from tailwise.history.runs.found import find
from tailwise.history.runs.judge import Judge

WRONG, FINE = frozenset({"layer"}), frozenset()


def probe_of(pattern):
    return lambda index: WRONG if pattern[index] else FINE


@given(st.integers(2, 3000), st.data())
def test_the_first_wrong_checkpoint_is_found_by_about_log_n_looks(count, data):
    first = data.draw(st.integers(0, count))
    looks = []

    def probe(index):
        looks.append(index)
        return WRONG if index >= first else FINE

    found = bisect(range(count), probe, verify=False)
    expected = Onset(count - 1, None) if first == count else Onset(first - 1 if first else None, first)
    assert found.onset == expected
    assert len(looks) == len(set(looks)) <= 2 + ceil(log2(count))
    assert found.turns == ()
    looks.clear()
    assert bisect(range(count), probe).onset == expected
    assert len(looks) <= 4 + 3 * ceil(log2(count))


def test_a_clean_last_step_after_wrong_ones_is_told_as_that():
    found = bisect(range(0, 320, 10), probe_of([0] * 24 + [1] * 6 + [0] * 2))
    assert found.onset.bad is None
    assert found.spoke
    assert set(found.spoke) <= set(range(240, 300, 10))
    assert f"spoke at step {', '.join(map(str, found.spoke))}, and is silent again at the last step, 310" in _verdict(
        found, "TW203"
    )
    clean = bisect(range(0, 320, 10), probe_of([0] * 32))
    assert "wherever else it was asked" in _verdict(clean, "TW203")


def test_what_does_not_stay_wrong_is_said():
    pattern = [0] * 8 + [1] * 7 + [0] * 10 + [1] * 7
    found = bisect(range(len(pattern)), probe_of(pattern))
    assert not found.to_json()["monotone"]
    assert found.turns
    assert pattern[found.onset.bad]
    assert not pattern[found.onset.good]


def test_a_spell_before_a_clean_end_is_seen_from_the_end():
    pattern = [0] * 20 + [1] * 10 + [0]
    found = bisect(range(len(pattern)), probe_of(pattern))
    assert found.onset == Onset(30, None)
    assert found.turns == (30,)


def test_layers_have_onsets_of_their_own():
    began = {"early": 3, "late": 12}
    found = bisect(range(16), lambda index: frozenset(name for name, first in began.items() if index >= first))
    assert found.onset == Onset(2, 3)
    assert found.of_layer("early") == Onset(2, 3)
    late = found.of_layer("late")
    assert late.good < 12 <= late.bad
    assert found.to_json()["layers"]["early"] == {"last_good": 2, "first_bad": 3}


def test_a_collapsed_layer_is_found_in_real_checkpoints(make_run):
    found = find(make_run(range(100, 2100, 100), collapsed_from=1300))
    told = []
    judge = Judge(found, "tw603", told=lambda one, named: told.append((one.step, set(named))))
    result = bisect([one.step for one in found], judge, verify=False)
    assert result.to_json()["first_bad"] == 1300
    assert result.layers == ("model.layers.0.mlp.up_proj",)
    assert len(told) <= 7


def test_only_the_layers_that_are_asked_for_count(make_run):
    found = find(make_run(range(1, 4), collapsed_from=2))
    assert bisect([1, 2, 3], Judge(found, "TW603", layers="q_proj")).onset.bad is None
    with pytest.raises(UsageError, match="not a regular expression"):
        Judge(found, "TW603", layers="(")


def test_a_rule_that_needs_permutations_gets_them(make_run):
    found = find(make_run((1, 2)))
    assert bisect([1, 2], Judge(found, "TW205")).onset.bad is None


def test_where_the_rule_cannot_look_counts_as_silence_but_not_at_the_last_step(make_run):
    found = find(make_run((1, 2)))
    with pytest.raises(UsageError, match="TW401 cannot be evaluated at the last step, 2: no role has 5 blocks"):
        bisect([1, 2], Judge(found, "TW401"))
    judge = Judge([*found, found[-1]], "TW401")
    assert judge(0) == frozenset()
    assert list(judge.blind) == [1]


def test_an_unknown_rule_is_named_with_its_neighbours(make_run):
    with pytest.raises(UsageError, match=r"no rule named 'TW30'[\s\S]*TW301"):
        Judge(find(make_run((1, 2))), "TW30")
