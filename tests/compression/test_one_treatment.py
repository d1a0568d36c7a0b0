"""What is tried and what is written is the same, by every operator; and what two treatments in a row promise."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs_for, saved

from tailwise.audits.run import audit
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.casting import Cast, Then, noted
from tailwise.compression.plans.combined import combined
from tailwise.compression.plans.site import Site
from tailwise.compression.plans.taking import Drop, LowRank, Sparsify, Structured
from tailwise.compression.plans.treatment import TreatmentSettings
from tailwise.compression.trying.material import Pictures, Text
from tailwise.compression.trying.trial import Looking, trial_of
from tailwise.models.activations import Activations
from tailwise.models.walking.hosts import architecture_of
from tailwise.models.walking.stored_names import places_in

transformers = pytest.importorskip("transformers")

SINGLE = [name for name, item in OPERATORS.items() if item.planned and item.work is not None]
SITE = Site("w", "w", "mlp_up", 0, 32 * 64, (32, 64))


@pytest.fixture(scope="module", params=["llama", "gpt2", "convnext"])
def model(request, tmp_path_factory, _no_users_cache):
    """In bfloat16: rounding to what is stored is part of what must agree."""
    folder = saved(request.param, tmp_path_factory.mktemp("one") / request.param, dtype=torch.bfloat16)
    return request.param, folder, audit(folder)


def _plan(audited, operator: str):
    if "+" in operator:
        return combined(*(_plan(audited, name) for name in operator.split("+")))
    operator, _, chosen = operator.partition(" ")
    if OPERATORS[operator].does == "prune":
        return plan_prune(audited, Request(0.5, "depth", operator))
    formats = (chosen, "int8") if chosen else ("int4", "int8")
    return plan_quantize(audited, QuantizeRequest(6.0, formats=formats, allocator="depth", operator=operator))


@pytest.mark.parametrize("operator", [*SINGLE, "magnitude+rtn", "wanda+gptq", "gptq nvfp4", "magnitude+rtn nvfp4"])
def test_the_trial_of_a_plan_is_what_is_written(model, tmp_path, operator):
    kind, folder, audited = model
    plan, inputs = _plan(audited, operator), inputs_for(kind)
    needs = any(OPERATORS[name].looks for name in plan.operator.split("+"))
    apply(plan, folder, tmp_path / "out", options=ApplyOptions(calibration=inputs if needs else None))
    tried, places = _carried_out(plan, folder, kind)
    with open_checkpoint(tmp_path / "out") as written:
        for tensor, place in places.items():
            stored = written.read(tensor)
            assert torch.equal(tried[place].to(stored.dtype), stored), tensor


def _carried_out(plan, folder, kind):
    """Every parameter after a trial that was carried out, and where the stored tensors are."""
    architecture, _ = architecture_of(str(folder))
    loaded = architecture.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    (given,) = inputs_for(kind).values()
    with open_checkpoint(folder) as checkpoint:
        places, config = places_in(loaded, checkpoint), dict(checkpoint.config)
        dtypes = {d.tensor: torch_dtype(checkpoint.tensors[d.tensor].dtype, where=d.tensor) for d in plan}
    material = Text() if given.ndim == 2 else Pictures(given, torch.zeros(len(given), dtype=torch.int64))
    chosen = given if given.ndim == 2 else torch.arange(len(given))[:, None]
    trial, notes = trial_of(loaded, places, plan, Looking(chosen, material), (config, dtypes))
    assert not notes
    trial.carry_out(plan, chosen)
    return dict(loaded.named_parameters()), places


@pytest.mark.parametrize("second", ["rtn", "gptq"])
@pytest.mark.parametrize("first", ["magnitude", "wanda", "sparsegpt"])
def test_the_second_of_two_keeps_the_zeros_of_the_first(first, second):
    generator = torch.Generator().manual_seed(0)
    W, X = (torch.randn(shape, generator=generator) for shape in ((32, 64), (256, 64)))
    seen = Activations(norms=X.norm(dim=0), hessian=X.T @ X)
    how = TreatmentSettings(OPERATORS[first], then=TreatmentSettings(OPERATORS[second]))
    then = Then(Sparsify(0.5, "2:4"), Cast("int4-g32"))
    pruned = Sparsify(0.5, "2:4").do(W, TreatmentSettings(OPERATORS[first]), seen)
    both = then.do(W, how, seen)
    assert (both.weight[pruned.weight == 0] == 0).all()
    assert torch.equal(both.grid.round(both.weight), both.weight)
    again = Cast("int4-g32").do(pruned.weight, TreatmentSettings(OPERATORS[second], keep_zeros=True), seen)
    assert torch.equal(both.weight, again.weight)


def test_prices_are_what_a_site_takes_afterwards():
    assert Sparsify(0.25).price(SITE) == 1536.0
    assert Sparsify(0.5, "2:4").price(SITE) == Structured(0.5).price(SITE) == 1024.0
    assert LowRank(0.5, 4).price(SITE) == 4 * (32 + 64)  # by its rank, whatever it says of its sparsity
    assert Drop().price(SITE) == 0.0
    assert Cast("int4-g32").price(SITE) == 2048 * (4 + 16 / 32)
    assert Then(Sparsify(0.5), Cast("int8-channel")).price(SITE) == Cast("int8-channel").price(SITE)


@pytest.mark.parametrize(
    "treatment",
    [Sparsify(0.5), Sparsify(0.5, "2:4"), LowRank(0.4, 8), Structured(0.5), Drop(), Cast("nf4"),
     Then(Sparsify(0.5), Cast("int4")), Then(LowRank(0.4, 8), Cast("int4"))],
)  # fmt: skip
def test_what_a_file_writes_down_is_the_treatment_again(treatment):
    fields = {name: getattr(treatment, name) for name in ("sparsity", "pattern", "rank", "format")}
    assert noted(**fields, units=isinstance(treatment, Structured)) == treatment
