"""A plan of a GGUF file to a GGUF file: k-quants, importances, and all else as it was."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from packed_models import WINDOWS, plan_for, saved

from tailwise.audits.run import audit
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import ApplyOptions, apply
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.stage import StageOptions
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.ggml_library import ggml_library

gguf = pytest.importorskip("gguf")
if ggml_library() is None:
    pytest.skip("no library of ggml is installed (pip install 'tailwise[ggml]')", allow_module_level=True)

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
WEIGHED = ApplyOptions(calibration=WINDOWS, batch=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama of 256 inputs (64 of its down projections), in float32."""
    return saved(tmp_path_factory.mktemp("model"), dtype=torch.float32, hidden_size=256)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    """The same as a GGUF file in half precision."""
    folder = tmp_path_factory.mktemp("gguf")
    apply(
        plan_for(source, "fp16", also=("embed", "lm_head")),
        source,
        folder / "half",
        options=ApplyOptions(packed="gguf"),
    )
    (folder / "only").mkdir()
    shutil.copy(folder / "half" / "model.gguf", folder / "only" / "tiny.gguf")
    return folder / "only" / "tiny.gguf"


@pytest.fixture(scope="module")
def audited(file):
    return audit(file)


def plan_of(audited, *formats, also=(), **request):
    asked = QuantizeRequest(formats=formats, choice=TensorChoice(also=also), **request)
    return plan_quantize(audited, asked)


def tensors_in(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", TYPES)
def test_types_are_those_of_the_plan_and_values_those_of_gguf(audited, file, tmp_path, name):
    plan = plan_of(audited, name.upper(), also=("embed",))
    done = apply(plan, file, tmp_path / "out")
    before, after = tensors_in(file), tensors_in(tmp_path / "out" / "model.gguf")
    named = {decision.tensor: decision for decision in plan}
    with open_checkpoint(tmp_path / "out" / "model.gguf") as written, open_checkpoint(file) as stored:
        for tensor, found in after.items():
            if tensor not in named:
                assert (found.tensor_type, found.data.tobytes()) == (
                    before[tensor].tensor_type,
                    before[tensor].data.tobytes(),
                )
                continue
            inputs = stored.tensors[tensor].shape[-1]
            assert found.tensor_type.name.lower() == parse_format(name).fitting(inputs).name
            theirs = gguf.quants.dequantize(found.data, found.tensor_type)
            assert np.array_equal(written.read(tensor).numpy(), theirs)
            assert np.array_equal(theirs, parse_format(name).quantize(stored.read(tensor).float()).values.numpy())
    assert done.sizes[1] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert done.achieved == pytest.approx(done.requested)
    assert {"token_embd.weight", "blk.0.ffn_down.weight"} <= set(named)


def test_what_the_file_says_of_itself_stays(audited, file, tmp_path):
    apply(plan_of(audited, "q4_k"), file, tmp_path / "out")
    before, after = (gguf.GGUFReader(path).fields for path in (file, tmp_path / "out" / "model.gguf"))
    anew = {"general.file_type", "GGUF.kv_count"}
    assert before.keys() == after.keys()
    for name in before.keys() - anew:
        assert (before[name].types, before[name].contents()) == (after[name].types, after[name].contents())
    assert after["general.file_type"].contents() == int(gguf.LlamaFileType.MOSTLY_Q4_K_M)


def test_transformers_reads_the_same_values(audited, file, tmp_path):
    apply(plan_of(audited, "q6_k", also=("embed",)), file, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype="float32")
    with open_checkpoint(tmp_path / "out" / "model.gguf") as written:
        for own, place in (("blk.1.ffn_up", "model.layers.1.mlp.up_proj"), ("token_embd", "model.embed_tokens")):
            assert torch.equal(model.get_parameter(f"{place}.weight"), written.read(f"{own}.weight"))
        queries = written.read("blk.0.attn_q.weight").reshape(4, 32, 2, 256).transpose(1, 2).reshape(256, 256)
        assert torch.equal(model.get_parameter("model.layers.0.self_attn.q_proj.weight"), queries)


@pytest.mark.parametrize("share", [0.4, 0.45, 0.5, 0.55])
def test_bytes_are_those_of_the_whole_file_and_are_met(audited, file, tmp_path, share):
    least = apply(plan_of(audited, "q2_k", also=("embed",)), file, tmp_path / "least").sizes[1]
    asked = int(share * file.stat().st_size)
    assert asked > least
    plan = plan_of(audited, "Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0", bytes=asked, allocator="depth", also=("embed",))
    done = apply(plan, file, tmp_path / "out")
    assert len({decision.format for decision in plan}) > 1
    assert asked - 40_000 < done.sizes[1] <= asked  # the smallest tensor moves by 20,000 between two formats


def test_importances_are_the_mean_squared_inputs_and_lose_less_where_they_are_large(audited, file, tmp_path):
    weighed = apply(plan_of(audited, "q3_k", operator="imatrix"), file, tmp_path / "weighed", options=WEIGHED)
    apply(plan_of(audited, "q3_k"), file, tmp_path / "plain")
    kept = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "weighed" / "imatrix.gguf").tensors}
    dense = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32").eval()
    seen = []
    dense.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        dense(WINDOWS)
    squares = seen[0].flatten(0, 1).double().square().sum(0)
    assert kept["blk.0.attn_q.weight.in_sum2"].ravel() == pytest.approx(squares.numpy(), rel=1e-5)
    assert kept["blk.0.attn_q.weight.counts"].ravel() == pytest.approx([WINDOWS.numel()])
    with open_checkpoint(file) as stored:
        for tensor in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.ffn_up.weight"):
            lost = []
            importances = torch.from_numpy(kept[f"{tensor}.in_sum2"].copy()).ravel()
            for made in ("weighed", "plain"):
                with open_checkpoint(tmp_path / made / "model.gguf") as written:
                    error = written.read(tensor).float() - stored.read(tensor).float()
                lost.append(float((error.square() * importances).sum()))
            assert lost[0] < lost[1]
    assert weighed.settings["calibration"] == "token windows"


def test_the_importance_matrix_is_laid_out_as_llama_cpp_reads_it(audited, file, tmp_path):
    plan = plan_of(audited, "q4_k", operator="imatrix", also=("embed",))
    done = apply(plan, file, tmp_path / "out", options=WEIGHED)
    reader = gguf.GGUFReader(tmp_path / "out" / "imatrix.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "imatrix"
    assert "general.architecture" not in said
    assert (said["imatrix.chunk_count"], said["imatrix.chunk_size"]) == tuple(WINDOWS.shape)
    assert said["imatrix.datasets"] == ["token windows"]
    ends = {tensor.name.rpartition(".")[2] for tensor in reader.tensors}
    assert ends == {"in_sum2", "counts"}
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.0.ffn_down.weight.in_sum2"] == [64, 1]
    assert shapes["blk.0.ffn_down.weight.counts"] == [1, 1]
    assert not any(name.startswith("token_embd") for name in shapes)
    assert any("without importances" in note and "token_embd" in note for note in done.notes)


def test_a_trial_rounds_as_apply_does(audited, file, tmp_path):
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 96, 24 * 16))
    text = StageOptions(str(tmp_path / "ids.npy"), samples=4, window=24, search_windows=2)
    request = QuantizeRequest(bits=4.6, formats=("q3_k", "q4_k", "q6_k"), operator="imatrix",
                              choice=TensorChoice(also=("embed",)))  # fmt: skip
    plan = planned(audited, request, allocator="sensitivity", text=text)
    assert len({item.format for item in plan}) > 1


#: llama.cpp's program is not at hand to the tests: this does what is asked of it, tensor by tensor.
_PROGRAM = """
import re, sys
import gguf, torch
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.packing.gguf_copy import GgufCopy
from tailwise.compression.packing.gguf_packing import to_bytes
from tailwise.number_formats.formats import parse_format
given = sys.argv[1:]
assert given.pop(0) == "--allow-requantize" and given.pop(0) == "--tensor-type-file"
lines = [line.rpartition("=") for line in open(given.pop(0)).read().split()]
sums = {}
if given[0] == "--imatrix":
    sums = {tensor.name: torch.tensor(tensor.data).ravel() for tensor in gguf.GGUFReader(given[1]).tensors}
    given = given[2:]
source, target, rest = given
assert rest == "Q8_0"
with open_checkpoint(source) as stored:
    types = {}
    for name, spec in stored.tensors.items():
        wanted = next((kind for pattern, _, kind in lines if re.search(pattern, name)), None)
        if wanted is not None and wanted != spec.dtype.removeprefix("GGUF_").lower():
            types[name] = wanted.upper()
    def blocks(name):
        W, mean = stored.read(name).float(), sums.get(name + ".in_sum2")
        return parse_format(types[name]).weighted(W, mean).scales
    GgufCopy(stored, types, blocks, 15, {}).write(__import__("pathlib").Path(target), lambda *_: None)
"""


@pytest.mark.parametrize("operator", ["rtn", "imatrix"])
def test_without_a_library_llama_cpps_program_is_asked(audited, file, tmp_path, monkeypatch, operator):
    plan = plan_of(audited, "q3_k", operator=operator, also=("embed",))
    plan = plan.replace(decisions=tuple(d for d in plan if "ffn_down" not in d.tensor))  # 64 inputs
    how = WEIGHED if operator == "imatrix" else None
    with_library = apply(plan, file, tmp_path / "library", options=how)
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -P\n{_PROGRAM}")
    program.chmod(0o755)
    monkeypatch.setattr("tailwise.compression.applying.gguf_to_gguf.ggml_library", lambda: None)
    with pytest.raises(UsageError, match="neither a library of ggml nor llama-quantize is there"):
        apply(plan, file, tmp_path / "out", options=how)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    done = apply(plan, file, tmp_path / "out", options=how)
    assert any("rounded by" in note and "llama-quantize" in note for note in done.notes)
    one, other = (tensors_in(tmp_path / folder / "model.gguf") for folder in ("library", "out"))
    assert {name: tensor.tensor_type for name, tensor in one.items()} == {n: t.tensor_type for n, t in other.items()}
    if operator == "rtn":
        assert all(one[name].data.tobytes() == other[name].data.tobytes() for name in one)
        assert [item.relative_error for item in done.tensors] == [item.relative_error for item in with_library.tensors]
    else:
        first = "blk.0.attn_q.weight"  # later ones see the blocks before them unrounded
        apply(plan.replace(operator="rtn"), file, tmp_path / "plain")
        plain = tensors_in(tmp_path / "plain" / "model.gguf")[first].data
        # The file holds sums in float32, so that a few entries near the middle of two codes get the other one.
        assert np.mean(one[first].data != other[first].data) < 0.02
        assert np.mean(plain != other[first].data) > 0.2


def test_what_the_program_says_is_told_where_it_fails(audited, file, tmp_path, monkeypatch):
    program = tmp_path / "llama-quantize"
    program.write_text("#!/bin/sh\necho 'unknown type q9_k' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("tailwise.compression.applying.gguf_to_gguf.ggml_library", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UnreadableError, match="llama-quantize ended with 3: unknown type q9_k"):
        apply(plan_of(audited, "q4_k"), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_two_files_in_a_folder_the_one_that_is_named_is_taken(audited, file, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, tmp_path / name)
    found = audit(tmp_path / "b.gguf")
    plan = plan_of(found, "q4_k", operator="imatrix")
    done = apply(plan, tmp_path / "b.gguf", tmp_path / "out", options=WEIGHED)
    assert done.sizes[1] < done.sizes[0]
    assert (tmp_path / "out" / "imatrix.gguf").is_file()


def test_a_file_that_was_split_becomes_one(file, tmp_path):
    whole = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "x", "llama", split_max_tensors=8)
    for name, field in whole.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(tmp_path / "x.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = sorted(tmp_path.glob("*.gguf"))[0]
    assert "-00001-of-" in first.name
    apply(plan_of(audit(first), "q4_k"), first, tmp_path / "out")
    assert tensors_in(tmp_path / "out" / "model.gguf").keys() == tensors_in(file).keys()
    assert not any(name.startswith("split.") for name in gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields)


def test_rounding_a_second_time_is_said(audited, file, tmp_path):
    apply(plan_of(audited, "q4_1"), file, tmp_path / "once")
    again = audit(tmp_path / "once" / "model.gguf")
    done = apply(plan_of(again, "q3_k"), tmp_path / "once" / "model.gguf", tmp_path / "twice")
    assert any("rounded before (Q4_1)" in note for note in done.notes)


def test_plain_casts_and_other_formats_are_still_a_folder(audited, file, tmp_path):
    apply(plan_of(audited, "bf16"), file, tmp_path / "numbers")
    assert (tmp_path / "numbers" / "model.safetensors").is_file()
    apply(plan_of(audited, "bf16"), file, tmp_path / "packed", options=ApplyOptions(packed="gguf"))
    assert tensors_in(tmp_path / "packed" / "model.gguf")["blk.0.attn_q.weight"].tensor_type.name == "BF16"


def test_what_llama_cpp_has_no_type_for_is_refused_before_any_work(audited, file, tmp_path):
    with pytest.raises(UsageError, match=r"llama\.cpp has no type for int4-g32"):
        apply(plan_of(audited, "int4-g32"), file, tmp_path / "out", options=ApplyOptions(packed="gguf"))
    with pytest.raises(
        UsageError, match=r"gptq goes column by column, and q4_k is rounded in whole blocks; take imatrix"
    ):
        apply(plan_of(audited, "q4_k", operator="gptq"), file, tmp_path / "out", options=WEIGHED)
    with pytest.raises(UsageError, match="imatrix looks at the inputs of each layer"):
        apply(plan_of(audited, "q4_k", operator="imatrix"), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("operator", ["rtn", "imatrix"])
def test_a_folder_is_packed_alike(source, tmp_path, operator):
    plan = plan_for(source, "q6_k", also=("embed",), operator=operator)
    plan = plan.replace(decisions=tuple(d.but(format="q3_k") if "q_proj" in d.tensor else d for d in plan))
    how = {"calibration": WINDOWS, "batch": 4} if operator == "imatrix" else {}
    apply(plan, source, tmp_path / "dense", options=ApplyOptions(**how))
    apply(plan, source, tmp_path / "packed", options=ApplyOptions(packed="gguf", **how))
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="float32").eval()
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", gguf_file="model.gguf", dtype="float32"
    ).eval()
    with torch.no_grad():
        assert torch.allclose(dense(WINDOWS).logits, packed(WINDOWS).logits, atol=1e-4)


@pytest.fixture
def strange(tmp_path):
    """An architecture that transformers does not read: experts in one tensor, odd metadata, other alignment."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "strange.gguf", "grok")
    writer.add_custom_alignment(64)
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "\u2581a", "b"])
    writer.add_key_value(
        "tokenizer.ggml.pieces", [b"\xff\xfe", b"ok"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING
    )
    writer.add_array("odd.floats", [1.5, 2.5])
    writer.add_bool("odd.flag", True)
    writer.add_float64("odd.double", 0.1)
    writer.add_uint8("odd.byte", 7)
    for name, shape in (
        ("token_embd.weight", (40, 256)), ("blk.0.attn_q.weight", (64, 256)),
        ("blk.0.ffn_gate_exps.weight", (4, 48, 256)),
        ("blk.0.ffn_down_exps.weight", (4, 256, 48)), ("blk.0.attn_norm.weight", (256,)),
        ("output_norm.weight", (256,)),
    ):  # fmt: skip
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))
    writer.add_tensor("blk.0.table.weight", np.arange(8, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "strange.gguf"


def test_any_architecture_is_rounded_without_its_model(strange, tmp_path):
    plan = plan_of(audit(strange), "q4_k", also=("embed",))
    done = apply(plan, strange, tmp_path / "out")
    before, after = tensors_in(strange), tensors_in(tmp_path / "out" / "model.gguf")
    types = {name: tensor.tensor_type.name for name, tensor in after.items()}
    assert types == {
        "token_embd.weight": "Q4_K", "blk.0.attn_q.weight": "Q4_K", "blk.0.ffn_gate_exps.weight": "Q4_K",
        "blk.0.ffn_down_exps.weight": "F16",  # 48 inputs
        "blk.0.attn_norm.weight": "F32", "output_norm.weight": "F32", "blk.0.table.weight": "I32",
    }  # fmt: skip
    assert all(list(after[name].shape) == list(before[name].shape) for name in before)
    assert after["blk.0.table.weight"].data.tobytes() == before["blk.0.table.weight"].data.tobytes()
    assert all(tensor.data_offset % 64 == 0 for tensor in after.values())
    one, other = (
        {name: [part.tobytes() for part in field.parts] for name, field in gguf.GGUFReader(path).fields.items()
         if name.startswith(("odd", "tok"))}
        for path in (strange, tmp_path / "out" / "model.gguf")
    )  # fmt: skip
    assert one == other
    with open_checkpoint(tmp_path / "out" / "model.gguf") as written:
        experts = written.read("blk.0.ffn_gate_exps.weight")
    stored = torch.tensor(np.array(before["blk.0.ffn_gate_exps.weight"].data)).reshape(4, 48, 256)
    for found, W in zip(experts, stored, strict=True):
        assert torch.equal(found, parse_format("q4_k").quantize(W).values)
    assert any("fp16 in 1 tensor" in note for note in plan.notes)
    assert len(done.tensors) == 4
