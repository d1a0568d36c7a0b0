"""Whole experts that go: which ones, how a plan says it, what is refused before any work."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from families.contract import made
from families.kinds import FAMILIES, Family, built, inputs_of, loaded, outputs
from families.reference import gone_from, without_rows
from tailwise.audits.run import audit
from tailwise.cli.plan_commands import app
from tailwise.compression.applying.apply import apply
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks
from tailwise.compression.shrinking.experts_dropped import how_many
from tailwise.compression.shrinking.experts_out import Mixtures
from tailwise.compression.trying.drop import DropOptions, fewer_experts
from tailwise.core.errors import UsageError
from tailwise.models.walking.calibrate import sample_windows

LEFT = {"sparsity": 0.0, "pattern": "unstructured"}
LISTED, STACKED = "qwen3_moe", "gpt_oss"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: made(name, tmp_path_factory.mktemp(name)) for name in (LISTED, STACKED)}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(1, 60, 24 * 16))
    return DropOptions(str(path), samples=16, window=24)


def structured(found):
    return plan_prune(found.audited, Request(0.0, "uniform", "structured"))


def of_size(tmp_path, model_type, **values):
    family = Family(model_type, model_type, {**FAMILIES[model_type].values, **values})
    model = built(family)
    model.save_pretrained(tmp_path / "model")
    return family, model, plan_prune(audit(tmp_path / "model", workers=1), Request(0.0, "uniform", "structured"))


def picked(model, ids):
    """Router → tokens sent to each expert, counted where the router says so."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if name.endswith((".mlp.gate", ".mlp.router")):

            def hook(router, given, out, name=name):
                chosen = next(value for value in out if not value.is_floating_point())
                counts = torch.bincount(chosen.flatten(), minlength=router.weight.shape[0])
                found[name] = found.get(name, 0) + counts

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: counts.tolist() for name, counts in found.items()}


@pytest.mark.parametrize("name", [LISTED, STACKED])
def test_with_text_those_go_that_the_router_picks_most_seldom(models, name, text, tmp_path):
    found = models[name]
    plan = fewer_experts(structured(found), str(found.folder), "1", text)
    apply(plan, found.folder, tmp_path / "out")
    gone = gone_from(found.model, loaded(found.model, tmp_path / "out"))
    ids = torch.as_tensor(np.load(text.calibration))
    counts = picked(found.model, sample_windows(ids, text.samples, text.window, text.seed, None))
    assert gone == {router: [int(np.argmin(seen))] for router, seen in counts.items()}
    least = counts["model.layers.0.mlp." + ("gate" if name == LISTED else "router")]
    reasons = [item.reason for item in plan if item.block == 0 and item.treatment.whole]
    assert all(f"{min(least):,} of {sum(least):,} picks" in reason for reason in reasons)


def test_without_text_those_of_the_smallest_norms_go(tmp_path):
    _, model, _ = of_size(tmp_path, "mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1] *= 0.01
        model.model.layers[1].mlp.experts.gate_up_proj[2] *= 0.01
    model.save_pretrained(tmp_path / "model")
    plan = plan_prune(audit(tmp_path / "model", workers=1), Request(0.0, "uniform", "structured"))
    plan = fewer_experts(plan, str(tmp_path / "model"), "1", DropOptions(None))
    apply(plan, tmp_path / "model", tmp_path / "out")
    gone = gone_from(model, loaded(model, tmp_path / "out"))
    assert list(gone.values()) == [[1], [2]]


@pytest.mark.parametrize("name", [LISTED, STACKED])
def test_a_plan_with_experts_is_the_same_when_it_was_saved(models, name, tmp_path):
    plan = fewer_experts(structured(models[name]), str(models[name].folder), "1", DropOptions(None))
    for suffix in ("json", "yaml"):
        plan.save(tmp_path / f"plan.{suffix}")
        assert Plan.load(tmp_path / f"plan.{suffix}").decisions == plan.decisions


def test_fewer_than_a_token_was_sent_to_are_left(tmp_path):
    family, model, plan = of_size(tmp_path, "qwen2_moe", num_experts=4, num_experts_per_tok=3, norm_topk_prob=True)
    plan = fewer_experts(plan, str(tmp_path / "model"), "50%", DropOptions(None))
    done = apply(plan, tmp_path / "model", tmp_path / "out")
    after = loaded(model, tmp_path / "out")
    assert (after.config.num_experts, after.config.num_experts_per_tok) == (2, 2)
    assert "tokens went to 3 experts and now go to the 2 that are left" in done.notes
    with without_rows(model, gone_from(model, after)):
        masked = outputs(model, inputs_of(family))
    assert torch.allclose(outputs(after, inputs_of(family)), masked, rtol=1e-3, atol=1e-4)


def test_groups_of_experts_stay_equally_large(tmp_path):
    family, model, plan = of_size(tmp_path, "deepseek_v3", n_routed_experts=8, n_group=2, topk_group=1)
    plan = fewer_experts(plan, str(tmp_path / "model"), "4", DropOptions(None))
    apply(plan, tmp_path / "model", tmp_path / "out")
    after = loaded(model, tmp_path / "out")
    (gone,) = gone_from(model, after).values()
    assert [sum(number < 4 for number in gone), len(gone)] == [2, 4]
    with without_rows(model, {"model.layers.1.mlp.gate": gone}):
        masked = outputs(model, inputs_of(family))
    assert torch.allclose(outputs(after, inputs_of(family)), masked, rtol=1e-3, atol=1e-4)
    kept = f".experts.{gone[0]}."
    one = plan.replace(decisions=tuple(item.but(**LEFT) if kept in item.tensor else item for item in plan))
    with pytest.raises(UsageError, match="chooses among 2 groups of 4 experts"):
        apply(one, tmp_path / "model", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("asked", "count"), [("2", 2), ("25%", 2), ("0.25", 2), ("30 %", 2), ("0.5", 4), (" 7 ", 7)])
def test_numbers_and_shares(asked, count):
    assert how_many(asked, Mixtures(8, 1, 2, ("a",))) == count


@pytest.mark.parametrize(
    ("asked", "groups", "words"),
    [
        ("8", 1, "8 of the 8 experts of each block cannot go"),
        ("0", 1, "0 of the 8 experts"),
        ("-1", 1, "-1 of the 8"),
        ("100%", 1, "8 of the 8"),
        ("1.5", 1, "1.5 experts cannot go"),
        ("nan", 1, "no number of experts"),
        ("inf", 1, "no number of experts"),
        ("some", 1, "no number of experts"),
        ("3", 2, "chooses among 2 groups"),
        ("6", 2, "6 of the 8 experts"),
    ],
)
def test_what_cannot_go_is_told(asked, groups, words):
    with pytest.raises(UsageError, match=words):
        how_many(asked, Mixtures(8, groups, 2, ("a",)))


def test_as_many_of_every_block_before_any_work(models, tmp_path):
    found = models[STACKED]
    plan = fewer_experts(structured(found), str(found.folder), "1", DropOptions(None))
    uneven = plan.replace(
        decisions=tuple(item.but(sparsity=0.0, pattern="unstructured", experts=()) if item.block == 0 else item
                        for item in plan)
    )  # fmt: skip
    with pytest.raises(UsageError, match="as many experts of every block must go"):
        apply(uneven, found.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_expert_goes_with_all_its_parts(models):
    plan = fewer_experts(structured(models[LISTED]), str(models[LISTED].folder), "1", DropOptions(None))
    part = next(item.tensor for item in plan if item.treatment.whole and item.role == "expert_up")
    torn = plan.replace(decisions=tuple(item.but(**LEFT) if item.tensor == part else item for item in plan))
    with pytest.raises(UsageError, match="goes as a whole or not at all"):
        torn.validate()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"experts": [0, 0]}, "a list of their numbers, each once"),
        ({"experts": ["x"]}, "a list of their numbers"),
        ({"experts": 1.5}, "a list of their numbers"),
        ({"experts": []}, "the list `experts` is needed"),
        ({"sparsity": 1.0}, "the share of its experts"),
        ({"sparsity": "some"}, "the fraction of its experts"),
        ({"pattern": "unstructured"}, "lists experts that go, and its pattern is unstructured"),
        ({"role": "attn_q"}, "is no part of an expert"),
    ],
)
def test_edits_that_mean_nothing_are_told(models, tmp_path, fields, words):
    plan = fewer_experts(structured(models[STACKED]), str(models[STACKED].folder), "1", DropOptions(None))
    document = plan.to_json()
    entry = next(item for item in document["entries"].values() if "experts" in item)
    entry |= fields
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=words):
        Plan.load(tmp_path / "plan.json")


def test_experts_that_are_not_there_are_told_before_any_work(models, tmp_path):
    found = models[STACKED]
    plan = fewer_experts(structured(found), str(found.folder), "1", DropOptions(None))
    wrong = plan.replace(decisions=tuple(item.but(experts=(7,)) if item.treatment.whole else item for item in plan))
    with pytest.raises(UsageError, match="there is no expert 7"):
        apply(wrong, found.folder, tmp_path / "out")


def test_another_operator_takes_no_experts(models):
    found = models[LISTED]
    with pytest.raises(UsageError, match="a plan for wanda takes no whole experts"):
        fewer_experts(
            plan_prune(found.audited, Request(0.5, operator="wanda")), str(found.folder), "1", DropOptions(None)
        )


def test_blocks_and_experts_go_in_one_plan(tmp_path):
    _, model, plan = of_size(tmp_path, "qwen3_moe", num_hidden_layers=3)
    plan = without_blocks(plan, named_blocks([1]))
    plan = fewer_experts(plan, str(tmp_path / "model"), "1", DropOptions(None))
    apply(plan, tmp_path / "model", tmp_path / "out")
    after = loaded(model, tmp_path / "out")
    assert len(after.model.layers) == 2
    assert after.model.layers[1].mlp.experts.down_proj.shape[0] == 2
    again = fewer_experts(plan, str(tmp_path / "model"), "2", DropOptions(None))
    apply(again, tmp_path / "model", tmp_path / "more")
    assert loaded(model, tmp_path / "more").model.layers[1].mlp.experts.down_proj.shape[0] == 1
    back = fewer_experts(again, str(tmp_path / "model"), "1", DropOptions(None))
    assert back.decisions == plan.decisions


def test_a_count_under_another_name_of_the_family_follows(models, tmp_path):
    _, model, plan = of_size(tmp_path, "qwen3_moe")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config))
    plan = fewer_experts(plan, str(tmp_path / "model"), "1", DropOptions(None))
    apply(plan, tmp_path / "model", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 2
    assert loaded(model, tmp_path / "out").model.layers[0].mlp.experts.down_proj.shape[0] == 2


def test_a_model_without_experts_is_told(tmp_path):
    _, _, plan = of_size(tmp_path, "llama")
    with pytest.raises(UsageError, match="experts of this LlamaForCausalLM cannot go: it has none"):
        fewer_experts(plan, str(tmp_path / "model"), "1", DropOptions(None))


def test_the_command(models, text, tmp_path):
    found = models[STACKED]
    plan = tmp_path / "plan.json"
    given = ["drop", str(found.folder), "--experts", "30%", "--calibration", str(text.calibration), "--window", "24"]
    result = CliRunner().invoke(app, [*given, "-o", str(plan)])
    assert result.exit_code == 0
    assert "1 of 3 experts of each mixture go as a whole" in result.output
    assert sum(item.treatment.whole for item in Plan.load(plan)) == 4
    result = CliRunner().invoke(app, ["drop", str(plan), "--experts", "1", "--blocks", "0"])
    assert "give one of --blocks 3,7, --count 2, --experts 2" in str(result.exception)
