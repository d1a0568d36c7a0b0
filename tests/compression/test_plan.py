"""What a plan knows of itself, of a model, and of another plan."""

from __future__ import annotations

import pytest
from made_plans import audit_of, model, rows_of

from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.candidates import sizes_in
from tailwise.core.errors import UsageError

FIRST = "layers.0.attn_q.weight"


def test_a_decision_is_found_by_its_tensor_and_a_wrong_name_gets_near_ones(plan):
    assert plan[FIRST].role == "attn_q"
    assert FIRST in plan
    assert "layers.9" not in plan
    with pytest.raises(UsageError, match=r"did you mean .*layers\.0\.attn_q\.weight"):
        plan["layers.0.attn_q"]


def test_it_fits_the_model_it_was_made_for(plan, audit):
    assert plan.misfits(sizes_in(audit), audit.provenance.fingerprint) == ()


def test_another_model_s_weights_are_noticed(plan, audit):
    assert "the weights are others" in plan.misfits(sizes_in(audit), "e" * 64)[0]


def test_missing_tensors_and_other_shapes_are_noticed_with_near_names(plan, audit):
    sizes = sizes_in(audit)
    del sizes[FIRST]
    sizes["layers.1.attn_q.weight"] += 1
    missing, other = plan.misfits(sizes)
    assert "there is no tensor layers.0.attn_q.weight; did you mean" in missing
    assert other == "layers.1.attn_q.weight has 4097 parameters, not 4096"


def test_a_plan_of_more_blocks_does_not_fit_a_smaller_model(plan):
    assert len(plan.misfits(sizes_in(model(blocks=3)))) == 4


def test_a_plan_does_the_same_as_itself(plan):
    assert plan.diff(plan).same
    assert plan.diff(plan).moved == 0.0


def test_what_changed_was_added_and_removed_is_told(plan):
    other = plan.replace(
        operator="magnitude",
        decisions=(
            *plan.decisions[2:],
            plan.decisions[0].but(sparsity=0.1),
            plan.decisions[0].but(tensor="new.weight"),
        ),
    )
    found = plan.diff(other)
    assert [(change.field, change.after) for change in found.changed] == [("sparsity", 0.1)]
    assert (found.added, found.removed) == (("new.weight",), (plan.decisions[1].tensor,))
    assert [change.field for change in found.head] == ["operator"]
    assert not found.same
    assert found.to_json()["removed"] == (plan.decisions[1].tensor,)


def test_two_entries_for_one_tensor_are_refused(plan):
    with pytest.raises(UsageError, match="is there 2 times"):
        plan.replace(decisions=(*plan.decisions, plan.decisions[0])).validate()


def test_an_audit_s_order_does_not_change_a_plan():
    rows = rows_of()
    first, second = (plan_prune(audit_of(order), Request(0.7, pattern="N:8")) for order in (rows, rows[::-1]))
    assert {d.tensor: d for d in first} == {d.tensor: d for d in second}
