"""A GGUF file as a model that is planned for, tried, applied to and evaluated; and what to do with other codes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers
from packed_models import WINDOWS, plan_for, saved
from safetensors.torch import load_file, save_file

from tailwise.audits.run import audit
from tailwise.compression.applying.apply import ApplyOptions, apply
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.losses import window_losses

pytest.importorskip("gguf")
OPTIONS = ApplyOptions(calibration=WINDOWS)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A Llama in q4_0, alone in its folder."""
    folder = tmp_path_factory.mktemp("gguf")
    source = saved(folder / "source")
    apply(plan_for(source, "q4_0"), source, folder / "packed", options=ApplyOptions(packed="gguf"))
    (folder / "only").mkdir()
    shutil.copy(folder / "packed" / "model.gguf", folder / "only" / "tiny.gguf")
    return folder / "only" / "tiny.gguf"


@pytest.fixture(scope="module")
def decoded(file):
    """What transformers makes of it."""
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32").eval()


def test_wanda_on_a_gguf_is_a_folder_that_plain_transformers_loads(file, decoded, tmp_path):
    plan = plan_prune(audit(file), Request(0.5, "uniform", "wanda"))
    assert plan.decisions[0].tensor == "blk.0.attn_q.weight"
    done = apply(plan, file, tmp_path / "out", options=OPTIONS)
    assert done.achieved == pytest.approx(0.5)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, after in model.named_parameters():
        before = decoded.get_parameter(name)
        zeros = after == 0
        assert torch.equal(after[~zeros], before[~zeros])
        gone = int(zeros.sum()) - int((before == 0).sum())
        assert gone > 0 if "proj" in name else gone == 0
    assert str(file) in (tmp_path / "out" / "README.md").read_text()
    assert not list(tmp_path.glob(".out*"))


def test_gptq_on_a_gguf_and_a_gguf_again(file, tmp_path):
    plan = plan_quantize(audit(file), QuantizeRequest(formats=("int4-g32",), operator="gptq"))
    assert apply(plan, file, tmp_path / "out", options=OPTIONS).achieved == pytest.approx(4.5)
    again = plan_quantize(audit(file), QuantizeRequest(formats=("q8_0",)))
    apply(again, file, tmp_path / "packed", options=ApplyOptions(packed="gguf"))
    assert (tmp_path / "packed" / "model.gguf").is_file()


def test_its_perplexity_is_that_of_its_values(file, decoded, tmp_path):
    np.save(tmp_path / "ids.npy", WINDOWS.flatten().numpy())
    found = evaluate(str(file), text=str(tmp_path / "ids.npy"), options=EvaluateOptions(window=24))
    assert found.perplexity == pytest.approx(float(np.exp(window_losses(decoded, WINDOWS).mean())), rel=1e-5)


def test_plans_are_tried_on_it(file, tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 96, 24 * 16))
    text = StageOptions(str(tmp_path / "ids.npy"), samples=4, window=24, search_windows=2)
    plan = planned(audit(file), Request(0.5, operator="wanda"), allocator="sensitivity", text=text)
    assert len({item.sparsity for item in plan}) > 1


@pytest.fixture(params=["eight bits", "packed"])
def coded(request, tmp_path):
    source = saved(tmp_path / "source")
    if request.param == "packed":
        plan = plan_for(source, "int4-g32")
        apply(plan, source, tmp_path / "coded", options=ApplyOptions(packed="compressed-tensors"))
        return tmp_path / "coded"
    weights = load_file(source / "model.safetensors")
    weights = {name: W.to(torch.float8_e4m3fn) if "proj" in name else W for name, W in weights.items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return source


def test_the_remedy_that_is_printed_for_quantized_weights_works(coded, tmp_path):
    found = audit(coded)
    with pytest.raises(UsageError, match=r"write this one dequantized first .*--formats fp32 --dequantize"):
        apply(plan_prune(found, Request(0.5, "uniform", "magnitude")), coded, tmp_path / "no")
    plan = plan_quantize(found, QuantizeRequest(formats=("bf16",), dequantize=True))
    apply(plan, coded, tmp_path / "numbers")
    pruning = plan_prune(audit(tmp_path / "numbers"), Request(0.5, "uniform", "wanda"))
    assert apply(pruning, tmp_path / "numbers", tmp_path / "out", options=OPTIONS).achieved == pytest.approx(0.5)


def test_what_links_beside_it_lead_to_is_not_written(file, tmp_path):
    place, secret = tmp_path / "model", tmp_path / "secret"
    shutil.copytree(file.parent.parent / "packed", place)
    secret.mkdir()
    (secret / "template").write_text("{# TOP-SECRET #}")
    (secret / "facts.json").write_text('{"password": "TOP-SECRET"}')
    for name in ("chat_template.jinja", "generation_config.json"):
        (place / name).unlink(missing_ok=True)
    (place / "chat_template.jinja").symlink_to(secret / "template")
    (place / "generation_config.json").symlink_to(secret / "facts.json")
    plan = plan_prune(audit(place / "model.gguf"), Request(0.5, "uniform", "magnitude"))
    apply(plan, place / "model.gguf", tmp_path / "out")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors"} <= {path.name for path in written}
    assert not [path.name for path in written if b"TOP-SECRET" in path.read_bytes()]
