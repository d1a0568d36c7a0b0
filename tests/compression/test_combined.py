"""One plan that prunes and quantizes."""

from __future__ import annotations

import pytest
import torch

from tailwise.compression.operators.operator import Target
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.combined import combined
from tailwise.compression.plans.decision import entry
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.models.activations import Activations
from tailwise.number_formats.formats import parse_format

NAME = "model.layers.{}.mlp.up_proj.weight"


def _plan(names, amount, **head) -> Plan:
    made = tuple(
        entry(name, name.removesuffix(".weight"), "mlp_up", place, 2048, shape=(64, 32), reason="so", **amount)
        for place, name in enumerate(names)
    )
    facts = {
        "allocator": "uniform",
        "model": "a/model",
        "fingerprint": "f",
        "budget": {"requested": 0.5},
        "notes": ("n",),
    }
    return Plan(decisions=made, **{**facts, **head})


def _pruning(*names: str, **head) -> Plan:
    return _plan(names, {"sparsity": 0.5}, **{"kind": "prune", "operator": "magnitude", **head})


def _quantizing(*names: str, **head) -> Plan:
    return _plan(names, {"format": "int4-g32"}, **{"kind": "quantize", "operator": "rtn", **head})


def test_both_parts_come_back_as_they_were() -> None:
    prune, quantize = _pruning(NAME.format(0), NAME.format(1)), _quantizing(NAME.format(1), NAME.format(2))
    both = combined(prune, quantize)
    assert both.operator == "magnitude+rtn"
    assert [item.tensor for item in both] == [NAME.format(index) for index in range(3)]
    for kind, before in (("prune", prune), ("quantize", quantize)):
        part = both.part(kind)
        assert (part.kind, part.operator, part.allocator) == (kind, before.operator, before.allocator)
        assert part.diff(before).same
        assert part.budget == before.budget
        assert part.notes == before.notes


def test_it_survives_its_file(tmp_path) -> None:
    both = combined(_pruning(NAME.format(0)), _quantizing(NAME.format(0)))
    for name in ("plan.json", "plan.yaml"):
        both.save(tmp_path / name)
        assert Plan.load(tmp_path / name) == both
    assert both.validate() == ()
    assert both.amount_words == "sparsity 0.5 and 4.5 bits per weight"


def test_a_bad_edit_of_either_part_is_told(tmp_path) -> None:
    both = combined(_pruning(NAME.format(0)), _quantizing(NAME.format(0)))
    both.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    for before, after, said in (("int4-g32", "int5", "int5"), ("sparsity: 0.5", "sparsity: 70", "0.7")):
        (tmp_path / "edited.yaml").write_text(text.replace(before, after))
        with pytest.raises(UsageError, match=said):
            Plan.load(tmp_path / "edited.yaml")


@pytest.mark.parametrize(
    ("prune", "quantize", "said"),
    [
        (_quantizing(NAME.format(0)), _pruning(NAME.format(0)), "where one to prune is needed"),
        (_pruning(NAME.format(0), fingerprint="a"), _quantizing(NAME.format(0), fingerprint="b"), "two models"),
        (_pruning(NAME.format(0), operator="structured"), _quantizing(NAME.format(0)), "changes shapes"),
    ],
)
def test_what_does_not_go_together_is_refused(prune, quantize, said) -> None:
    with pytest.raises(UsageError, match=said):
        combined(prune, quantize)


@pytest.mark.parametrize("name", ["int4-g32", "int4-asym-g32", "int8", "mxfp4", "nvfp4", "nf4-g32", "fp8_e4m3"])
@pytest.mark.parametrize(("operator", "act_order"), [("rtn", False), ("gptq", False), ("gptq", True)])
def test_zeros_stay_zeros(name, operator, act_order) -> None:
    torch.manual_seed(0)
    W, X = torch.randn(24, 64), torch.randn(400, 64)
    W[torch.rand(W.shape) < 0.5] = 0.0
    inputs = Activations(hessian=X.T @ X)
    found = OPERATORS[operator](W, Target(parse_format(name), act_order, keep_zeros=True), inputs).weight
    assert bool((found[W == 0] == 0).all())
    if operator == "gptq":
        rtn = OPERATORS["rtn"](W, Target(parse_format(name), keep_zeros=True)).weight
        error = [float(((weight - W) @ X.T).square().sum()) for weight in (found, rtn)]
        assert error[0] < error[1]
