"""Packed as GGUF: read by transformers' own loader, and by the gguf package."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from packed_models import WINDOWS, both, logits, plan_for, saved
from tiny_models import quantize

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.packing import gguf_model
from tailwise.core.errors import UsageError

pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
LAYOUT, FILE = "gguf", "model.gguf"
FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "bf16", "fp16")
FLOAT = {"dtype": torch.float32}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """In float32, so that nothing but the blocks rounds."""
    return saved(tmp_path_factory.mktemp("llama"), dtype=torch.float32)


@pytest.fixture(autouse=True)
def _theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def words(digits):
    """How Llama 3 and Qwen2 split words."""
    head = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    return head + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def of_file(folder):
    return logits(folder, gguf_file=FILE, **FLOAT)


@pytest.mark.parametrize("name", FORMATS)
def test_transformers_computes_the_same_as_with_real_numbers(llama, tmp_path, name):
    made = both(llama, plan_for(llama, name), LAYOUT, tmp_path)
    assert torch.allclose(of_file(made.packed), logits(made.dense, **FLOAT), atol=1e-5)


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_mixed_plans_of_both_operators(llama, tmp_path, operator):
    plan = plan_for(llama, "q4_0", "q5_1", "mxfp4", "q8_0", operator=operator)
    how = {"calibration": WINDOWS, "batch": 4} if operator == "gptq" else {}
    made = both(llama, plan, LAYOUT, tmp_path, **how)
    assert torch.allclose(of_file(made.packed), logits(made.dense, **FLOAT), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("qwen2", {}),
    ],
)
def test_other_models_of_the_family(tmp_path, kind, config):
    source = saved(tmp_path / "source", kind, torch.float32, **config)
    made = both(source, plan_for(source, "q8_0", also=("embed",)), LAYOUT, tmp_path)
    assert torch.allclose(of_file(made.packed), logits(made.dense, **FLOAT), atol=1e-5)


def test_rows_come_in_the_order_of_llama_cpp_and_go_back():
    rows = torch.arange(32 * 3).reshape(32, 3)
    there = gguf_model.turned(rows, 4)
    assert torch.equal(there[:4], rows[[0, 4, 1, 5]])  # heads of 8: pairs (i, i + 4) become neighbours
    assert torch.equal(gguf_model.turned_back(there, 4), rows)


def test_biases_go_with_their_rows_and_are_noted(tmp_path):
    source = saved(tmp_path / "source", dtype=torch.float32, attention_bias=True)
    done = quantize(plan_for(source, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("biases" in note for note in done.notes)
    with open_checkpoint(tmp_path / "out" / FILE) as packed, open_checkpoint(source) as dense:
        for part, heads in (("q", 4), ("k", 2), ("v", None)):
            found = gguf_model.turned_back(packed.read(f"blk.0.attn_{part}.bias"), heads)
            assert torch.equal(found, dense.read(f"model.layers.0.self_attn.{part}_proj.bias"))


def test_an_audit_reads_the_values_of_the_blocks(llama, tmp_path):
    plan = plan_for(llama, "q4_1", "q5_0")
    made = both(llama, plan, LAYOUT, tmp_path)
    with open_checkpoint(made.packed / FILE) as packed, open_checkpoint(made.dense) as dense:
        for name, place in (("mlp.up_proj", "ffn_up"), ("self_attn.v_proj", "attn_v")):
            found = packed.read(f"blk.1.{place}.weight")
            assert torch.equal(found, dense.read(f"model.layers.1.{name}.weight"))


def test_blocks_are_those_that_gguf_quantizes_to(llama, tmp_path):
    for name in ("q4_0", "q5_1", "q8_0"):
        quantize(plan_for(llama, name), llama, tmp_path / name, ApplyOptions(packed=LAYOUT))
        reader = gguf.GGUFReader(tmp_path / name / FILE)
        stored = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
        with open_checkpoint(llama) as source:
            W = source.read("model.layers.0.mlp.down_proj.weight").numpy()
        assert np.array_equal(stored.data, gguf.quants.quantize(W, gguf.GGMLQuantizationType[name.upper()]))


def test_sizes_are_those_of_the_plan_and_the_file(llama, tmp_path):
    done = quantize(plan_for(llama, "q4_0"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert done.requested == done.achieved == 4.5
    assert done.sizes[1] == (tmp_path / "out" / FILE).stat().st_size
    assert "llama.cpp" in (tmp_path / "out" / "README.md").read_text()


def test_metadata_says_what_the_model_is(llama, tmp_path):
    quantize(plan_for(llama, "q4_0"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    fields = gguf.GGUFReader(tmp_path / "out" / FILE).fields
    found = {name: fields[name].contents() for name in fields}
    assert found["general.architecture"] == "llama"
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.dimension_count"] == 8
    assert found["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_Q4_0)


def test_the_tokenizer_is_in_the_file(pycode, tmp_path):
    import transformers

    done = quantize(plan_for(pycode, "q4_0"), pycode, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert not [note for note in done.notes if "tokenizer" in note]
    text = (pycode / "heldout.txt").read_text()
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file=FILE)
    assert ours(text)["input_ids"] == transformers.AutoTokenizer.from_pretrained(pycode)(text)["input_ids"]


def test_a_tokenizer_that_falls_back_on_bytes(tmp_path):
    """Its merges are scores, which fall with the number of the token, and bytes are marked as such."""
    source = saved(tmp_path / "source", dtype=torch.float32)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x41>": 3, "a": 4, "b": 5, "ab": 6}
    model = {"type": "BPE", "byte_fallback": True, "vocab": vocabulary, "merges": [["a", "b"]]}
    added = [{"id": 1, "content": "<s>", "special": True}]
    (source / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    quantize(plan_for(source, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    fields = gguf.GGUFReader(tmp_path / "out" / FILE).fields
    found = {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "tokens", "scores", "token_type")}
    assert found["model"] == "llama"
    assert found["tokens"][:8] == [*vocabulary, "[PAD7]"]
    assert found["scores"][:3] == [0.0, -1.0, -2.0]
    kinds = [gguf.TokenType(kind).name for kind in found["token_type"][:8]]
    assert kinds == ["NORMAL", "CONTROL", "NORMAL", "BYTE", "NORMAL", "NORMAL", "NORMAL", "UNUSED"]


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (None, "there is no tokenizer.json"),
        ({"model": {"type": "Unigram"}}, "of the kind Unigram was left out"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "splits words is not known here"),
    ],
)
def test_what_is_not_known_of_a_tokenizer_is_noted(tmp_path, tokenizer, said):
    source = saved(tmp_path / "source", dtype=torch.float32)
    if tokenizer is not None:
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = quantize(plan_for(source, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any(said in note for note in done.notes)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
        ({"type": "Split", "pattern": {"Regex": words(r"\p{N}{1,3}")}}, "llama-bpe"),
        ({"type": "Split", "pattern": {"Regex": words(r"\p{N}")}}, "qwen2"),
        ({"type": "Split", "pattern": {"Regex": "x"}}, None),
    ],
)
def test_how_words_are_split_is_told_by_the_expression(split, name):
    from tailwise.compression.packing.gguf_tokenizer import _split

    assert _split({"pre_tokenizer": {"pretokenizers": [split]}}) == name


def test_a_window_of_attention_is_noted(tmp_path):
    source = saved(tmp_path / "source", "qwen2", torch.float32, use_sliding_window=True, sliding_window=16)
    done = quantize(plan_for(source, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("window of 16 tokens" in note for note in done.notes)


def test_a_packed_folder_is_evaluated(pycode, tmp_path):
    from tailwise.models.evaluation.loading import load_model

    quantize(plan_for(pycode, "q8_0"), pycode, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    loaded = load_model(tmp_path / "out")
    assert loaded.tokenizer is not None
    assert loaded.module.config.vocab_size == 4096


def test_factors_of_llama_3_by_hand(tmp_path):
    """Waves shorter than context/high stay, longer than context/low are divided by the factor."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "rope_parameters": rope}
    factors = gguf_model.rope_factors(config)
    waves = [2 * torch.pi * 10000.0 ** (i / 4) for i in range(4)]  # 6.3, 62.8, 628, 6283
    smooth = (64 / waves[1] - 1) / 3
    assert factors.tolist() == pytest.approx([1.0, 1 / ((1 - smooth) / 8 + smooth), 8.0, 8.0])
    source = saved(tmp_path / "source", rope_parameters=rope)
    done = quantize(plan_for(source, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert any("Llama 3.1" in note for note in done.notes)
    names = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "out" / FILE).tensors]
    assert names[0] == "rope_freqs.weight"


# What goes wrong


def test_formats_without_a_type_are_refused_with_their_layers(llama, tmp_path):
    plan = plan_for(llama, "int4-g32", "q4_0")
    with pytest.raises(UsageError, match=r"no type for int4-g32: .*layers") as caught:
        quantize(plan, llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert "q8_0" in caught.value.fix


def test_other_architectures_are_refused(tmp_path):
    import tiny_models

    source = tiny_models.saved("opt", tmp_path / "source")
    with pytest.raises(UsageError, match="written for llama, mistral, qwen2, qwen3, and this is opt"):
        quantize(plan_for(source, "bf16"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "kind 'yarn' are not written"),
        ({"hidden_size": None}, "does not say hidden_size"),
    ],
)
def test_what_the_file_could_not_say_is_refused(llama, tmp_path, changes, said):
    from shutil import copytree

    source = copytree(llama, tmp_path / "source")
    config = {**json.loads((source / "config.json").read_text()), **changes}
    config = {name: value for name, value in config.items() if value is not None}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=said):
        quantize(plan_for(llama, "q8_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT, force=True))


def test_a_file_is_scored_as_its_types_decode(tmp_path):
    from tailwise.models.evaluation.loading import load_model

    source = saved(tmp_path / "source", dtype=torch.bfloat16)
    quantize(plan_for(source, "q5_0"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    found = load_model(str(tmp_path / "out" / FILE)).module.model.layers[0].mlp.down_proj.weight
    (stored,) = (one for one in gguf.GGUFReader(tmp_path / "out" / FILE).tensors if one.name == "blk.0.ffn_down.weight")
    decoded = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert not torch.equal(decoded, decoded.bfloat16().float())  # or rounding it would not be seen
    assert torch.equal(found.detach(), decoded)


def test_the_whole_model_is_counted_with_what_the_plan_leaves(llama, tmp_path):
    done = quantize(plan_for(llama, "q4_0"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    nbytes, parameters = done.whole
    with open_checkpoint(llama) as source:
        assert parameters == sum(spec.numel for spec in source.tensors.values())
        planned = sum(item.n_params for item in done.tensors)
        assert nbytes == round(planned * 4.5 / 8) + 4 * (parameters - planned)
    assert done.to_json()["model_bytes"] == nbytes
    assert nbytes < done.sizes[1] < nbytes + 20_000  # the file has a header too
