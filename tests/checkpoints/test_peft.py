"""LoRA against peft's own merge."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.formats.peft import PeftCheckpoint
from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

peft = pytest.importorskip("peft")
pytestmark = [
    # peft uses it inside transformers
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # peft then saves the base's embeddings as well
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]


def tiny_llama(dtype=torch.float64):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype)


def tiny_gpt2(dtype=torch.float64):
    import transformers

    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).to(dtype)


class Convs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 12, 3)
        self.out = torch.nn.Linear(12, 9)

    def forward(self, x):
        return self.out(self.conv(x).mean((2, 3)))


def trained(model, tmp_path, **settings):
    """(base, adapter, its config, merged state dict) of a LoRA with random factors, saved and read back."""
    base = MemoryCheckpoint.of_module(copy.deepcopy(model))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.1 * noise.to(parameter.dtype)
    wrapped.save_pretrained(tmp_path)
    adapter = MemoryCheckpoint("adapter", load_file(tmp_path / "adapter_model.safetensors"))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    merged = {n: p.detach() for n, p in wrapped.merge_and_unload().state_dict().items()}
    return base, adapter, settings, merged


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "plain": (tiny_llama, {"r": 4, "lora_alpha": 10, "target_modules": ALL}),
    "rslora": (tiny_llama, {"r": 4, "lora_alpha": 10, "use_rslora": True, "target_modules": ALL}),
    "patterns": (
        tiny_llama,
        {
            "r": 4, "lora_alpha": 10, "target_modules": ALL,
            "rank_pattern": {"layers.0.self_attn.q_proj": 6, "down_proj": 2},
            "alpha_pattern": {"up_proj": 3, r"layers\.\d+\.mlp\.down_proj": 5},
        },
    ),
    "dora": (tiny_llama, {"r": 4, "lora_alpha": 10, "use_dora": True, "target_modules": ALL}),
    "embedding": (tiny_llama, {"r": 4, "lora_alpha": 10, "target_modules": ["embed_tokens", "q_proj"]}),
    "saved": (
        tiny_llama,
        {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "conv1d": (
        tiny_gpt2,
        {"r": 4, "lora_alpha": 10, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "conv1d-dora": (
        tiny_gpt2,
        {"r": 4, "lora_alpha": 10, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "conv2d": (lambda: Convs().double(), {"r": 4, "lora_alpha": 10, "target_modules": ["conv", "out"]}),
}  # fmt: skip


def read(checkpoint, name, rows=7):
    """A tensor in pieces of a few rows."""
    count = checkpoint.tensors[name].shape[0]
    return torch.cat([checkpoint.read_rows(name, i, min(i + rows, count)) for i in range(0, count, rows)])


@pytest.mark.parametrize("case", CASES)
def test_merged_and_delta_equal_those_of_peft(case, tmp_path):
    make, settings = CASES[case]
    base, adapter, config, expected = trained(make(), tmp_path, **settings)
    merged = PeftCheckpoint.open(adapter, config, base, "merged")
    assert set(merged.tensors) == set(base.tensors)
    for name in merged.tensors:
        torch.testing.assert_close(read(merged, name), expected[name], rtol=0, atol=1e-12)

    delta = PeftCheckpoint.open(adapter, config, base, "delta")
    changed = {name for name in expected if not torch.equal(expected[name], base.read(name))}
    assert set(delta.tensors) - set(delta.aside) == changed
    for name in changed:
        difference = expected[name] - base.read(name)
        torch.testing.assert_close(read(delta, name), difference, rtol=0, atol=1e-12)


def test_float32_models_agree_to_rounding(tmp_path):
    model = tiny_llama(torch.float32)
    base, adapter, config, expected = trained(model, tmp_path, r=4, lora_alpha=8, target_modules=ALL)
    merged = PeftCheckpoint.open(adapter, config, base, "merged")
    for name in merged.tensors:
        torch.testing.assert_close(read(merged, name).float(), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "patterns", "embedding", "conv1d", "conv2d"])
def test_factors_multiply_to_the_update_with_and_without_a_base(case, tmp_path):
    make, settings = CASES[case]
    base, adapter, config, expected = trained(make(), tmp_path, **settings)
    for given in (None, base):
        delta = PeftCheckpoint.open(adapter, config, given, "delta")
        found, _ = group(delta, conv="flatten", min_evals=1)
        assert {source.kind for source in found} == {"lora"}
        for source in found:
            (matrix,) = load(source, delta)
            left, right = matrix.factors
            blocks = torch.cat(list(matrix.row_blocks(1000)))
            torch.testing.assert_close(left @ right, blocks, rtol=0, atol=1e-12)
            view = source.views[0]
            difference = (expected[view.tensor] - base.read(view.tensor)).reshape(view.shape)
            expected_part = torch.cat([difference[a:b] for a, b in view.rows])[:, slice(*view.cols)]
            torch.testing.assert_close(blocks, expected_part, rtol=0, atol=1e-12)


def test_a_merged_model_has_the_roles_and_blocks_of_its_base(tmp_path):
    base, adapter, config, _ = trained(tiny_llama(), tmp_path, r=4, target_modules=["q_proj"])
    merged = PeftCheckpoint.open(adapter, config, base, "merged")
    ours, _ = group(merged, conv="flatten", min_evals=8)
    theirs, _ = group(base, conv="flatten", min_evals=8)
    assert [(s.name, s.role, s.block) for s in ours] == [(s.name, s.role, s.block) for s in theirs]
    assert {s.reading for s in ours if s.role == "attn_q"} == {"lora-merged"}
    assert all(load(s, merged)[0].factors is None for s in ours)


def test_a_quantized_base_is_decoded_first():
    codes, largest = torch.randint(-127, 128, (12, 10), dtype=torch.int8), torch.rand(12)
    base = MemoryCheckpoint("base", {"a.q_proj.weight": codes, "a.q_proj.SCB": largest})
    factors = factors_of("a.q_proj")
    A, B = factors.values()
    adapter = MemoryCheckpoint("adapter", factors)
    merged = PeftCheckpoint.open(adapter, {"r": 2, "lora_alpha": 4}, base, "merged")
    expected = codes.double() * (largest[:, None] / 127).double() + 2.0 * B.double() @ A.double()
    torch.testing.assert_close(read(merged, "a.q_proj.weight"), expected, rtol=1e-6, atol=1e-6)


def factors_of(module, *, out=12, inputs=10, rank=2):
    stem = f"base_model.model.{module}"
    return {f"{stem}.lora_A.weight": torch.randn(rank, inputs), f"{stem}.lora_B.weight": torch.randn(out, rank)}


def test_what_is_wrong_says_what_to_do():
    factors = factors_of("a")
    adapter = MemoryCheckpoint("adapter", factors)
    with pytest.raises(UsageError, match="needs its base model"):
        PeftCheckpoint.open(adapter, {"base_model_name_or_path": "org/base"}, None, "merged")
    with pytest.raises(UsageError, match="delta or merged"):
        PeftCheckpoint.open(adapter, {}, None, "both")
    with pytest.raises(UsageError, match="merge_and_unload"):
        PeftCheckpoint.open(adapter, {"peft_type": "IA3"}, None, "delta")
    other = MemoryCheckpoint("base", {"b.weight": torch.randn(12, 10)})
    with pytest.raises(UsageError, match="trained on"):
        PeftCheckpoint.open(adapter, {}, other, "merged")
    other = MemoryCheckpoint("base", {"a.weight": torch.randn(13, 10)})
    with pytest.raises(UsageError, match="trained on"):
        PeftCheckpoint.open(adapter, {}, other, "delta")
    with pytest.raises(UnreadableError, match="no LoRA"):
        PeftCheckpoint.open(MemoryCheckpoint("x", {"a.weight": torch.randn(3, 3)}), {}, None, "delta")
    half = MemoryCheckpoint("x", {"base_model.model.a.lora_A.weight": torch.randn(3, 3)})
    with pytest.raises(UnreadableError, match="one of the two"):
        PeftCheckpoint.open(half, {}, None, "delta")
    dora = {**factors, "base_model.model.a.lora_magnitude_vector": torch.rand(12)}
    with pytest.raises(UsageError, match="DoRA"):
        PeftCheckpoint.open(MemoryCheckpoint("adapter", dora), {}, None, "delta")


def test_identity_changes_with_the_factors_the_base_and_the_scale():
    class Stored(MemoryCheckpoint):
        def identity(self, name):
            return f"{self.uri}:{name}"

    factors = factors_of("a")
    weights = {"a.weight": torch.randn(12, 10), "b.weight": torch.randn(12, 10)}

    def identities(adapter, base, alpha, mode):
        opened = PeftCheckpoint.open(Stored(adapter, factors), {"lora_alpha": alpha}, Stored(base, weights), mode)
        return opened.identity("a.weight"), opened.identity("b.weight")

    first, plain = identities("x", "y", 4, "merged")
    assert plain == "y:b.weight"
    others = [("z", "y", 4, "merged"), ("x", "z", 4, "merged"), ("x", "y", 5, "merged"), ("x", "y", 4, "delta")]
    assert len({first, *(identities(*other)[0] for other in others)}) == 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_alpha": "LORA"}, "not a number"),
        ({"lora_alpha": float("nan")}, "not a number"),
        ({"lora_alpha": 10**400}, "cannot be told"),
        ({"lora_alpha": [1]}, "not a number"),
        ({"lora_alpha": None}, "not a number"),
        ({"alpha_pattern": {"(": 1}}, "cannot be told"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "without end"),
    ],
)
def test_settings_that_are_no_numbers_are_told_at_opening(tmp_path, settings, said):
    name = "base_model.model.layers.0.q_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 6), f"{name}.lora_B.weight": torch.ones(4, 2)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings})
    )
    with pytest.raises(UnreadableError, match=said):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shapes", [((2,), (4, 2)), ((2, 6), (4, 3)), ((0, 6), (4, 0)), ((2, 6, 3, 3), (4, 2)), ((), ())]
)
def test_factors_that_make_no_matrix_are_told_at_opening(tmp_path, shapes):
    name = "base_model.model.layers.0.q_proj"
    save_file({f"{name}.lora_A.weight": torch.ones(shapes[0]), f"{name}.lora_B.weight": torch.ones(shapes[1])},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with pytest.raises(UnreadableError, match="do not make one matrix"):
        open_checkpoint(tmp_path)


class Experts(torch.nn.Module):
    def __init__(self, is_transposed):
        super().__init__()
        self.is_transposed = is_transposed  # peft looks at it
        shapes = ((4, 32, 40), (4, 20, 32)) if is_transposed else ((4, 40, 32), (4, 32, 20))
        self.gate_up_proj, self.down_proj = (torch.nn.Parameter(torch.randn(s).double()) for s in shapes)


class Sparse(torch.nn.Module):
    def __init__(self, is_transposed):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"experts": Experts(is_transposed)})])

    def forward(self, x):
        return x


@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("names", [["down_proj"], ["gate_up_proj", "down_proj"]])
def test_the_change_of_every_expert_is_that_of_pefts_target_parameters(names, is_transposed, tmp_path):
    targets = [f"experts.{name}" for name in names]
    pattern = {"r": 3, "lora_alpha": 7, "target_modules": [], "target_parameters": targets}
    base, adapter, config, expected = trained(Sparse(is_transposed), tmp_path, **pattern)
    whole = {f"layers.0.experts.{name}" for name in names}
    difference = {name: expected[name] - base.read(name) for name in whole}
    merged, delta = (PeftCheckpoint.open(adapter, config, base, mode) for mode in ("merged", "delta"))
    assert set(delta.tensors) == whole
    for name in whole:
        torch.testing.assert_close(read(merged, name, 3), expected[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(read(delta, name, 3), difference[name], rtol=0, atol=1e-12)

    alone = PeftCheckpoint.open(adapter, config, None, "delta")
    found, rest = group(alone, conv="flatten", min_evals=1)
    assert not rest
    assert len(found) == 4 * len(names)
    truths = [torch.linalg.svdvals(change) for name in whole for change in difference[name]]
    for source in found:
        (matrix,) = load(source, alone)
        W = torch.cat(list(matrix.row_blocks(1000)))
        left, right = matrix.factors
        torch.testing.assert_close(left @ right, W, rtol=0, atol=1e-12)
        values = torch.linalg.svdvals(W)
        assert any(t.shape == values.shape and torch.allclose(t, values, rtol=0, atol=1e-10) for t in truths)
        assert ("which one only the base tells" in source.note) == (len(names) > 1)


def test_experts_that_the_base_cannot_tell_apart_are_refused(tmp_path):
    class Square(Experts):
        def __init__(self):
            super().__init__(True)
            self.gate_up_proj, self.down_proj = (torch.nn.Parameter(torch.randn(4, 32, 32)) for _ in range(2))

    model = Sparse(True)
    model.layers[0]["experts"] = Square()
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    made = trained(model, tmp_path, r=3, target_modules=[], target_parameters=targets)
    base, adapter, config, _ = made
    for mode in ("merged", "delta"):
        with pytest.raises(UsageError, match="not one alone"):
            PeftCheckpoint.open(adapter, config, base, mode)
    config["target_parameters"] = targets[:1]
    one = {name: adapter.read(name) for name in adapter.tensors if ".base_layer" not in name}
    with pytest.raises(UsageError, match="square"):
        PeftCheckpoint.open(MemoryCheckpoint("adapter", one), config, base, "merged")
    with pytest.raises(UnreadableError, match="rank of"):
        PeftCheckpoint.open(adapter, {**config, "r": 5}, None, "delta")


@pytest.mark.parametrize("indices", [[3, 60, 7], {"embed_tokens": [3, 60, 7]}])
def test_trainable_tokens_are_put_into_the_table(indices, tmp_path):
    model = tiny_llama()
    base = MemoryCheckpoint.of_module(copy.deepcopy(model))
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=10, target_modules=["q_proj"], trainable_token_indices=indices)
    )
    for name, parameter in wrapped.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += torch.randn(parameter.shape, dtype=torch.float64)
    wrapped.save_pretrained(tmp_path)
    adapter = MemoryCheckpoint("adapter", load_file(tmp_path / "adapter_model.safetensors"))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = wrapped.merge_and_unload().state_dict()["model.embed_tokens.weight"].detach()
    name, before = "model.embed_tokens.weight", base.read("model.embed_tokens.weight")
    assert not torch.equal(expected, before)
    merged = PeftCheckpoint.open(adapter, config, base, "merged")
    torch.testing.assert_close(read(merged, name), expected, rtol=0, atol=1e-12)
    delta = PeftCheckpoint.open(adapter, config, base, "delta")
    torch.testing.assert_close(read(delta, name), expected - before, rtol=0, atol=1e-12)

    _, rest = group(PeftCheckpoint.open(adapter, config, None, "delta"), conv="flatten", min_evals=1)
    assert [(row.status, "3 rows" in row.reason) for row in rest] == [("UNSUPPORTED", True)]
    with pytest.raises(UsageError, match="does not say which rows"):
        PeftCheckpoint.open(adapter, {**config, "trainable_token_indices": [1]}, base, "merged")


def test_whole_weights_in_an_adapter_are_measured_by_their_plain_name_without_a_base(tmp_path):
    _, adapter, config, expected = trained(
        tiny_llama(), tmp_path, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    delta = PeftCheckpoint.open(adapter, config, None, "delta")
    found, rest = group(delta, conv="flatten", min_evals=1)
    (head,) = (source for source in found if source.name == "lm_head")
    assert (head.kind, head.reading, not rest) == ("dense", "plain", True)
    assert "not its change" in head.note
    assert torch.equal(read(delta, "lm_head.weight"), expected["lm_head.weight"])


def test_a_merge_starts_from_the_weight_that_the_adapter_saved_even_after_a_resize(tmp_path):
    model = tiny_llama()
    base = MemoryCheckpoint.of_module(copy.deepcopy(model))
    model.resize_token_embeddings(70, mean_resizing=False)
    _, adapter, config, expected = trained(
        model, tmp_path, r=4, lora_alpha=10, target_modules=["q_proj", "lm_head", "embed_tokens"]
    )
    saved = [name for name in adapter.tensors if name.endswith("base_layer.weight")]
    assert len(saved) == 2
    merged = PeftCheckpoint.open(adapter, config, base, "merged")
    for name in merged.tensors:
        torch.testing.assert_close(read(merged, name), expected[name], rtol=0, atol=1e-12)
    for given in (None, base):
        found, rest = group(PeftCheckpoint.open(adapter, config, given, "delta"), conv="flatten", min_evals=1)
        assert {row.name for row in rest} == set(saved)
        assert {source.kind for source in found} == {"lora"}


def test_a_table_of_another_size_has_no_difference_and_says_so():
    factors = factors_of("a")
    table = torch.randn(14, 10)
    adapter = MemoryCheckpoint("adapter", {**factors, "base_model.model.b.weight": table})
    base = MemoryCheckpoint("base", {"a.weight": torch.randn(12, 10), "b.weight": torch.randn(12, 10)})
    _, rest = group(PeftCheckpoint.open(adapter, {}, base, "delta"), conv="flatten", min_evals=1)
    assert [(row.status, "no difference" in row.reason) for row in rest] == [("UNSUPPORTED", True)]
    assert torch.equal(PeftCheckpoint.open(adapter, {}, base, "merged").read("b.weight"), table)
