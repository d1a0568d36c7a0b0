"""What a config asks for is gone through before a model is built from it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation import own_config
from tailwise.models.evaluation.loading import load_model, load_tokenizer
from tailwise.models.evaluation.own_counts import check_counts
from tailwise.models.evaluation.own_patterns import check_quantization
from tailwise.models.walking.hosts import architecture_of, load_host

transformers = pytest.importorskip("transformers")


@pytest.fixture
def place(folder, tmp_path):
    """A model whose files may be changed."""
    return shutil.copytree(folder, tmp_path / "model")


def changed(place, **values):
    file = place / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 1e9},
        {"model_type": "qwen3", "num_hidden_layers": 10**9},
        {"text_config": {"num_experts": 10**8}},
        {"depths": [2, 10**9]},
        {"num_labels": 10**9},
        {"hidden_size": 10**9},
        {"model_type": "git", "num_image_with_embedding": 2 * 10**9},
        {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "num_channels": 10**9}},
        {"model_type": "swin", "depths": [9000] * 9000},
        {"num_hidden_layers": 10**400},
    ],
)
def test_more_parts_than_any_model_has_are_refused_before_one_is_built(place, values):
    changed(place, **values)
    for read in (load_model, load_tokenizer, architecture_of):
        with pytest.raises(UnreadableError, match="asks for"):
            read(str(place))


@pytest.mark.parametrize(
    "values",
    [{"rope_theta": 10**10}, {"max_position_embeddings": 10**8}, {"pretraining_tokens": 15 * 10**12}, {"seed": 2**63},
     {"sliding_window": 2**31}, {"eos_token_id": [10**7]}, {"num_labels": 10**6}, {"attn_layers": list(range(200))},
     {"time_step_limit": [0.0, float("inf")]}],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_large_numbers_that_count_no_parts_are_taken(values):
    check_counts({"model_type": "llama", **values}, "here")


@pytest.mark.parametrize(
    "name", ["llama", "git", "doge", "deepseek_v3", "swin", "llava", "longcat_flash", "qwen2_5_omni"]
)
def test_what_the_configs_of_transformers_ask_for_is_taken(name):
    check_counts(transformers.CONFIG_MAPPING[name]().to_dict(), "here")


def test_many_small_parts_are_not_made_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(own_config, "_FEW_PARTS", 1000)
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
    }
    made = transformers.GitConfig(
        vision_config=vision, vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, num_image_with_embedding=6, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.GitForCausalLM(made).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).module is not None
    changed(tmp_path, num_image_with_embedding=10**6)
    with pytest.raises(UnreadableError, match=r"more than 1\d+ modules and weights"):
        load_model(str(tmp_path))
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(UnreadableError, match="modules and weights"):
        load_host(checkpoint, tmp_path)


def test_weights_that_no_file_can_hold_are_not_made_up(place, monkeypatch):
    monkeypatch.setattr(own_config, "_FEW_WEIGHTS", 0)
    weights = load_file(place / "model.safetensors")
    kept = {name: value.clone() for name, value in weights.items() if ".mlp." not in name}
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    changed(place, intermediate_size=10**6)
    with pytest.raises(UnreadableError, match="more weights than its files hold"):
        load_model(str(place))


def test_tables_of_more_positions_than_memory_has_are_not_made(tmp_path):
    made = transformers.GPTJConfig(n_layer=2, n_head=2, n_embd=8, n_positions=32, vocab_size=32, rotary_dim=4)
    transformers.GPTJForCausalLM(made).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).module.config.n_positions == 32
    changed(tmp_path, n_positions=10**12)
    with pytest.raises(UnreadableError, match="more weights than its files hold"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_an_implementation_on_the_hub_is_not_asked_for(place, name):
    expected = load_model(str(place)).module.config._attn_implementation
    changed(place, **{name: "someone/kernels"})
    assert load_model(str(place)).module.config._attn_implementation == expected


@pytest.mark.parametrize("name", ["../aside/model.safetensors", "{aside}/model.safetensors"])
def test_an_index_does_not_lead_out_of_the_folder(place, tmp_path, name):
    aside = tmp_path / "aside"
    aside.mkdir()
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").rename(aside / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name.format(aside=aside))}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableError, match="outside the model's folder"):
        load_model(str(place))


def test_shards_of_the_folder_are_loaded(place):
    weights = load_file(place / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in part}, place / f"part-{number}.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "model.safetensors").unlink()
    assert not load_model(str(place)).notes


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_gguf_file_that_asks_for_more_parts_than_any_model_has_is_refused(tmp_path, arch):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    writer.add_block_count(300_000_000)
    writer.add_embedding_length(8)
    writer.add_tensor("token_embd.weight", np.zeros((16, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for read in (load_model, architecture_of):
        with pytest.raises(UnreadableError, match="asks for num_hidden_layers"):
            read(str(tmp_path))


ENDLESS = r"((\w+)+\.?)+!"
PATTERNS = {
    "schemes": {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": [f"re:{ENDLESS}"]}}},
    "what is left": {"quant_method": "compressed-tensors", "ignore": ["lm_head", f"re:{ENDLESS}"]},
    "what is skipped": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": [ENDLESS]},
    "what is not converted": {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", ENDLESS]},
    "half a group": {"quant_method": "fp8", "modules_to_not_convert": [f"x)|(?:{ENDLESS}"]},
    "two halves": {"quant_method": "gemma", "module_quant_configs": {r"(?:(?:\w+": {}, r"\.?)+)+!": {}}},
    "keys": {"quant_method": "torchao", "quant_type": {"default": {"_data": {f"re:{ENDLESS}": None}}}},
    "a word": {"quant_method": "hqq", "skip_modules": ENDLESS},
    "too many": {"quant_method": "fp8", "modules_to_not_convert": [f"layer{n}.*" for n in range(30_000)]},
    "many together": {"quant_method": "fp8", "modules_to_not_convert": [f"x{n}.*a.*a.*a.*b" for n in range(1000)]},
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_of_quantized_modules_end(place, kind):
    for config in ({"quantization_config": PATTERNS[kind]}, {"text_config": {"quantization_config": PATTERNS[kind]}}):
        changed(place, **config)
        for read in (load_model, load_tokenizer, architecture_of):
            with pytest.raises(UnreadableError, match="its quantization_config has"):
                read(str(place))


@pytest.mark.parametrize(
    "said",
    [
        {"config_groups": {"group_0": {"targets": [r"re:.*\.layers\.\d+\..*_proj$", "Linear"]}},
         "ignore": ["lm_head", r"re:.*mlp\.gate$", *(f"model.layers.{n}.mlp.gate" for n in range(50_000))]},
        {"modules_to_not_convert": [f"model.layers.{n}.mlp.gate" for n in range(5000)]},
        {"exclude": ["*lm_head", "*.mlp.experts.[0-9]*", "lm_head"], "layer_quant_config": {"*.layers.*.q*": {}}},
        {"dynamic": {r"-:.*\.(q|k|v)_proj": {}, r"+:model\.layers\.\d+\.mlp": {"bits": 8}}},
        {"dataset": ["A text (with any signs: (a+)+, [b*c* d*] e? f?g?h?i?j?k?l?m?n?o?p?q?r?s?t?u?v?w?x?y?z?"] * 9},
    ],
    ids=["schemes", "names", "globs", "rules", "texts"],
)  # fmt: skip
def test_patterns_that_quantized_models_have_are_taken(said):
    check_quantization({"quantization_config": {"quant_method": "x", **said}}, "here")
