"""What others register is known everywhere: in requests, the command line, plans that are read, and `apply`."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import inputs_for, saved
from typer.testing import CliRunner

from tailwise.audits.run import audit
from tailwise.cli.main import app
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.choosing.amounts import ALLOCATORS, Allocation, allocator, sizes_of
from tailwise.compression.choosing.bit_formats import ASSIGNERS, Assignment, assigner
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.operators.operator import OperatorResult
from tailwise.compression.operators.registered import OPERATORS, operator_of, pruner, quantizer
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory, _no_users_cache):
    return saved("llama", tmp_path_factory.mktemp("third") / "model")


@pytest.fixture(scope="module")
def audited(model):
    return audit(model)


@pytest.fixture(autouse=True)
def _mine():
    """One of each, and none of them afterwards."""
    registries = (OPERATORS, ALLOCATORS, ASSIGNERS)
    before = [dict(registry.items()) for registry in registries]

    @pruner("mine", needs="norms", source="this test")
    def left_columns(W, amount, inputs):
        """The columns from the left."""
        assert inputs.norms is not None
        kept = W.clone().bool()
        kept[:] = True
        kept[:, : round(amount.sparsity * W.shape[1])] = False
        return OperatorResult(W.float() * kept, kept)

    @quantizer("mine-too", needs="none", source="this test")
    def half_range(W, target, inputs):
        """Scales of half the matrix, so that large entries are cut."""
        grid = target.format.grid(W / 2)
        return OperatorResult(grid.round(W), grid=grid)

    @allocator("mine", source="this test")
    def even(candidates, budget, settings):
        """The same everywhere."""
        return Allocation(np.full(len(sizes_of(candidates)), budget.sparsity), ("mine",) * len(candidates))

    @assigner("mine", source="this test")
    def least(choices, settings):
        """The fewest bits."""
        return Assignment(np.zeros(len(choices.groups), dtype=np.int64), ("mine",) * len(choices.groups))

    yield
    for registry, items in zip(registries, before, strict=True):
        registry._items = items


def test_a_pruner_is_planned_written_down_and_applied(audited, model, tmp_path):
    plan = plan_prune(audited, Request(0.5, "mine", "mine"))
    assert "mine compresses more where α is high" in plan.notes[0]
    plan = Plan.load(plan.save(tmp_path / "plan.json"))
    with pytest.raises(UsageError, match="looks at the inputs"):
        apply(plan, model, tmp_path / "out")
    done = apply(plan, model, tmp_path / "out", options=ApplyOptions(calibration=inputs_for("llama")["input_ids"]))
    assert {item.achieved for item in done.tensors} == {0.5}


def test_a_quantizer_is_planned_and_applied_with_scales_of_its_own(audited, model, tmp_path):
    request = QuantizeRequest(8.0, formats=("int4-g16", "int8-g16"), allocator="mine", operator="mine-too")
    plan = Plan.load(plan_quantize(audited, request).save(tmp_path / "plan.json"))
    assert {item.format for item in plan} == {"int4-g16"}
    done = apply(plan, model, tmp_path / "out")
    nearest = apply(plan.replace(operator="rtn"), model, tmp_path / "nearest")
    pairs = zip(done.tensors, nearest.tensors, strict=True)
    assert all(ours.relative_error > theirs.relative_error for ours, theirs in pairs)


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "--sparsity", "0.5", "--operator", "mine", "--allocator", "mine"],
        ["quantize", "--bits", "8", "--formats", "int4,int8", "--operator", "mine-too", "--allocator", "mine"],
    ],
)
def test_the_command_line_knows_them(audited, tmp_path, words):
    path = tmp_path / "model.audit"
    audited.save(path)
    done = CliRunner().invoke(app, ["plan", words[0], str(path), *words[1:], "-o", str(tmp_path / "plan.json")])
    assert done.exit_code == 0, done.output
    assert Plan.load(tmp_path / "plan.json").operator == words[words.index("--operator") + 1]


def test_each_stays_with_its_kind():
    with pytest.raises(UsageError, match="no operator named 'mine-too'"):
        Request(0.5, operator="mine-too")
    with pytest.raises(UsageError, match="no operator named 'mine'"):
        QuantizeRequest(4.0, operator="mine")
    with pytest.raises(UsageError, match="no operator named 'low_rank_whitened'"):
        operator_of("low_rank_whitened")
