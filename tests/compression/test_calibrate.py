"""Windows of text, the walk from block to block, and what it says of each layer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BLOCKS, KINDS, built, inputs_for, saved
from torch import nn

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.operators.operator import Amount
from tailwise.compression.operators.registered import OPERATORS
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.walking.calibrate import block_scores, dlp_scores, outlier_ratios, sample_windows
from tailwise.models.walking.hosts import Streamed, load_host
from tailwise.models.walking.statistics import Collector, inputs_of, matrices_of, stored_from
from tailwise.models.walking.walk import InPlace, blocks_of, walk_blocks

pytest.importorskip("transformers")

DECODERS = ("llama", "gpt2", "opt", "qwen2", "gemma3")


class Look:
    """Asks for one statistic of every layer, and keeps it with the block's name."""

    def __init__(self, need="norms", edit=None):
        self.need, self.edit, self.found, self.names = need, edit, {}, []

    def needs(self, block):
        self.names.append(block.name)
        return dict.fromkeys(block.layers(), self.need)

    def visit(self, block, found):
        self.found |= found
        if self.edit is not None:
            self.edit(block)


def seen_by(model, inputs, need):
    """The same statistics from one plain pass over the whole model."""
    layers = {name: m for block in blocks_of(model) for name, m in block.layers().items()}
    collector = Collector(layers, dict.fromkeys(layers, need), windows=len(next(iter(inputs.values()))))
    with collector, torch.no_grad():
        model(**inputs)
    return collector.found()


# Windows


def test_windows_are_runs_of_the_text():
    found = sample_windows(torch.arange(1000), samples=7, window=100)
    assert found.shape == (7, 100)
    assert (found.diff(dim=1) == 1).all()


def test_a_seed_gives_the_same_windows_and_another_gives_others():
    draws = [sample_windows(torch.arange(1000), 5, 100, seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("tokens", "says"),
    [(torch.arange(0), "is empty"), (torch.arange(99), "99 tokens, less than a window of 100"),
     (torch.arange(63), "has 63 tokens, and 64 are the least"), (torch.zeros(2, 200), "on one axis")],
)  # fmt: skip
def test_too_little_text_is_one_error(tokens, says):
    with pytest.raises(UsageError, match=says):
        sample_windows(tokens, 5, 100)


# The walk


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_sees_what_one_pass_over_the_whole_model_sees(kind):
    model, inputs = built(kind), inputs_for(kind)
    look = Look()
    walk_blocks(model, inputs, look, batch=4, edits=True)
    expected = seen_by(model, inputs, "norms")
    assert look.found.keys() == expected.keys()
    for name, seen in expected.items():
        assert torch.allclose(look.found[name].norms, seen.norms, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_are_found_in_order(kind):
    look = Look()
    walk_blocks(built(kind), inputs_for(kind), look)
    assert len(look.names) == BLOCKS
    assert [int(name.rsplit(".", 1)[1]) for name in look.names] == list(range(BLOCKS))


def test_blocks_after_an_edit_see_its_outputs():
    model, inputs = built("llama"), inputs_for("llama")

    def halve(block):
        for layer in block.layers().values():
            layer.weight.data.mul_(0.5)

    look = Look("hessian", halve)
    walk_blocks(model, inputs, look)
    after = seen_by(model, inputs, "hessian")  # every layer is halved by now
    first_of_second = "model.layers.1.self_attn.q_proj"
    assert torch.allclose(look.found[first_of_second].hessian, after[first_of_second].hessian, rtol=1e-3, atol=1e-3)


def test_a_dense_pass_leaves_the_model_as_it_was():
    model = built("llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    walk_blocks(model, inputs_for("llama"), Look(), edits=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all("forward" not in vars(block.module) for block in blocks_of(model))


def test_layers_with_one_input_share_one_sum():
    look = Look("hessian")
    walk_blocks(built("llama"), inputs_for("llama"), look)
    q, k, v, o = (look.found[f"model.layers.0.self_attn.{part}_proj"].hessian for part in "qkvo")
    assert q is k
    assert q is v
    assert q is not o


def test_a_layer_that_is_called_with_no_positions_was_not_reached():
    layer = nn.Linear(4, 4)
    with Collector({"expert": layer}, {"expert": "norms"}, windows=1) as collector:
        layer(torch.zeros(0, 4))
    assert collector.found() == {}


def test_the_size_of_batches_changes_nothing():
    one, other = Look("hessian"), Look("hessian")
    walk_blocks(built("gpt2"), inputs_for("gpt2"), one, batch=1)
    walk_blocks(built("gpt2"), inputs_for("gpt2"), other, batch=5)
    for name, seen in one.found.items():
        assert torch.allclose(seen.hessian, other.found[name].hessian, rtol=1e-3, atol=1e-3), name


def test_a_mask_of_the_input_reaches_the_blocks():
    model, inputs = built("bert"), inputs_for("bert")
    mask = torch.ones_like(inputs["input_ids"])
    mask[::2, 12:] = 0
    look = Look()
    walk_blocks(model, {**inputs, "attention_mask": mask}, look, batch=4)
    expected = seen_by(model, {**inputs, "attention_mask": mask}, "norms")
    for name, seen in expected.items():
        assert torch.allclose(look.found[name].norms, seen.norms, rtol=1e-4, atol=1e-5), name


def llava():
    """A tiny LLaVA, whose text model asks for a cache in a config of its own, and its inputs."""
    import transformers

    images = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4, "projection_dim": 16}  # fmt: skip
    text = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=64, use_cache=True,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(**images)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=95)
    torch.manual_seed(3)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    ids = torch.randint(0, 95, (6, 20), generator=torch.Generator().manual_seed(1))
    ids[:, 2:6] = 95  # an image is 2 × 2 patches
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return model, {"input_ids": ids, "pixel_values": pixels}


def wanda_of_paper(model, inputs, sparsity=0.5):
    """Layer → what stays: block by block with whole passes of a model that is not asked to cache anything."""
    kept = {}
    for block in blocks_of(model):
        seen, handles = {}, []
        for name, layer in block.layers().items():

            def hook(_layer, given, _out, name=name, seen=seen):
                x = given[0].reshape(-1, given[0].shape[-1]).float()
                seen[name] = seen.get(name, 0) + x.square().sum(0)

            handles.append(layer.register_forward_hook(hook))
        with torch.no_grad():
            model(**inputs, use_cache=False)
        for handle in handles:
            handle.remove()
        for name, layer in block.layers().items():
            scores = layer.weight.detach().abs() * seen[name].sqrt()
            lowest = scores.sort(dim=1, stable=True)[1][:, : int(scores.shape[1] * sparsity)]
            kept[name] = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
            layer.weight.data.mul_(kept[name])
    return kept


class Wanda:
    """Prunes half of every layer, block by block."""

    def __init__(self):
        self.kept = {}

    def needs(self, block):
        return dict.fromkeys(block.layers(), "norms")

    def visit(self, block, found):
        for name, layer in block.layers().items():
            done = OPERATORS["wanda"](layer.weight.detach(), Amount(0.5), found[name])
            self.kept[name] = done.kept
            layer.weight.data.mul_(done.kept)


@pytest.mark.parametrize("batch", [2, 6])
def test_masks_of_a_composite_model_are_those_of_wanda_to_the_bit(batch):
    model, inputs = llava()
    ours = Wanda()
    walk_blocks(model, inputs, ours, batch=batch)
    expected = wanda_of_paper(llava()[0], inputs)
    assert set(ours.kept) == set(expected)
    assert all(torch.equal(ours.kept[name], mask) for name, mask in expected.items())


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_are_handed_no_cache_even_where_the_caller_asks_for_one(kind):
    inputs = inputs_for(kind)
    found = {}
    for asked in (False, True):
        model, look = built(kind), Look()
        forward = model.forward
        model.forward = lambda asked=asked, forward=forward, **given: forward(**{**given, "use_cache": asked})
        walk_blocks(model, inputs, look, batch=4, edits=True)
        found[asked] = look.found
    for name, seen in found[False].items():
        assert torch.equal(found[True][name].norms, seen.norms)


def test_what_the_configs_ask_for_is_as_before_after_the_walk():
    model, inputs = llava()
    walk_blocks(model, inputs, Look())
    assert model.config.text_config.use_cache is True


def test_a_model_without_blocks_is_one_error():
    with pytest.raises(UsageError, match="no list of blocks"):
        walk_blocks(nn.Linear(4, 4), torch.ones(2, 4), Look())


@pytest.mark.parametrize(("kind", "says"), [("albert", "3 layers share the weights of 1"),
                                            ("t5", "hand one another more than their states")])  # fmt: skip
def test_a_model_whose_blocks_are_not_called_one_after_another_is_one_error(kind, says):
    inputs = inputs_for(kind)
    if kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with pytest.raises(UsageError, match=says):
        walk_blocks(built(kind), inputs, Look())


def test_a_stored_parameter_is_read_under_every_name_that_it_is_tied_to(tmp_path):
    folder = saved("t5", tmp_path / "model")
    with open_checkpoint(folder) as checkpoint:
        host = load_host(checkpoint, folder)
        host.home.outside([])
        assert torch.equal(host.model.encoder.embed_tokens.weight, checkpoint.read("shared.weight"))


def test_no_inputs_are_one_error():
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        walk_blocks(built("llama"), torch.zeros(0, 24, dtype=torch.int64), Look())


# Statistics


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5, bias=False), nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False),
     nn.Conv2d(6, 9, (3, 2), dilation=2, groups=3, bias=False),
     nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False),
     nn.Conv2d(6, 4, 3, padding=2, padding_mode="circular", bias=False), nn.Conv1d(6, 4, 5, padding=2, bias=False)],
    ids=["linear", "strided", "grouped", "depthwise", "circular", "one-dimensional"],
)  # fmt: skip
def test_a_layer_is_its_matrices_times_the_inputs_seen(layer):
    generator = torch.Generator().manual_seed(0)
    shape = {nn.Linear: (3, 7, 6), nn.Conv1d: (3, 6, 11)}.get(type(layer), (3, 6, 9, 9))
    x = torch.randn(shape, generator=generator)
    out = layer(x).detach()
    products = torch.einsum("gpi,goi->gop", inputs_of(layer, x), matrices_of(layer).detach())
    channels_first = out.reshape(-1, out.shape[-1]).T if type(layer) is nn.Linear else out.transpose(0, 1).flatten(1)
    assert torch.allclose(products.flatten(0, 1), channels_first, atol=1e-5)
    assert torch.equal(stored_from(layer, matrices_of(layer)), layer.weight)


def test_the_statistics_are_the_published_sums():
    model, inputs = built("llama"), inputs_for("llama", count=6)
    given = []
    handle = model.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    look = Look("hessian")
    walk_blocks(model, inputs, look, edits=False)
    handle.remove()
    X = torch.cat([x.reshape(-1, x.shape[-1]) for x in given]).double()
    seen = look.found["model.layers.0.mlp.gate_proj"]
    assert torch.allclose(seen.hessian[0].double(), 2.0 / 6 * X.T @ X, rtol=1e-4, atol=1e-4)
    assert torch.allclose(seen.norms[0].double(), (X.square().sum(0) / 6).sqrt(), rtol=1e-5)


# Models from their files


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "gemma3", "gptneox", "falcon", "convnext"])
def test_a_model_read_block_by_block_computes_as_the_whole_does(kind, tmp_path):
    folder, inputs = saved(kind, tmp_path), inputs_for(kind)
    with open_checkpoint(folder) as checkpoint:
        host = load_host(checkpoint, folder)
        assert isinstance(host.home, Streamed)
        look = Look()
        walk_blocks(host.home, inputs, look)
    expected = seen_by(built(kind), inputs, "norms")
    for name, seen in expected.items():
        assert torch.allclose(look.found[name].norms, seen.norms, rtol=1e-4, atol=1e-5), name


def test_only_the_block_at_work_has_weights(tmp_path):
    folder = saved("llama", tmp_path)
    with open_checkpoint(folder) as checkpoint:
        host = load_host(checkpoint, folder)
        loaded = []

        def count(block):
            all_blocks = blocks_of(host.model)
            loaded.append([b.index for b in all_blocks if not next(b.module.parameters()).is_meta])

        walk_blocks(host.home, inputs_for("llama"), Look(edit=count))
    assert loaded == [[index] for index in range(BLOCKS)]


def test_stored_names_that_no_table_knows_are_matched_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.models.walking.stored_names.own_names", lambda model, stored: {})
    folder = saved("vit", tmp_path)
    with open_checkpoint(folder) as checkpoint:
        host = load_host(checkpoint, folder)
        assert not isinstance(host.home, Streamed)
        for stored, place in host.places.items():
            assert torch.equal(checkpoint.read(stored), host.model.get_parameter(place))
        matrices = [name for name, spec in checkpoint.tensors.items() if len(spec.shape) == 2]
        assert set(matrices) <= set(host.places)


def test_a_config_without_a_model_of_transformers_is_one_error(tmp_path):
    folder = saved("llama", tmp_path)
    (folder / "config.json").write_text('{"model_type": "my-own"}')
    with open_checkpoint(folder) as checkpoint, pytest.raises(UnreadableError, match="config could not be read"):
        load_host(checkpoint, folder)


# Scores of OWL and DLP


def test_outlier_ratios_and_medians_are_of_all_entries_of_a_block():
    model, inputs = built("llama"), inputs_for("llama")
    seen = seen_by(model, inputs, "norms")
    found = block_scores(model, inputs, 3.0)
    for index, block in enumerate(blocks_of(model)):
        parts = [(m.weight.abs() * seen[name].norms[0]).flatten() for name, m in block.layers().items()]
        scores = torch.cat(parts).detach()
        ratio = 100.0 * float((scores > 3.0 * scores.mean()).double().mean())
        assert found.outlier_ratios[index] == pytest.approx(ratio, rel=1e-3)
        assert found.medians[index] == pytest.approx(float(scores.median()), rel=1e-4)


def test_scores_of_a_stored_model_are_those_of_the_model(tmp_path):
    folder, windows = saved("llama", tmp_path), inputs_for("llama")["input_ids"]
    model = built("llama")
    assert outlier_ratios(folder, windows) == pytest.approx(outlier_ratios(model, windows))
    assert dlp_scores(folder, windows) == pytest.approx(dlp_scores(model, windows))


def test_scores_do_not_change_where_the_stages_of_a_network_hold_several_blocks():
    found = block_scores(built("convnext"), inputs_for("convnext"))
    assert sorted(found.medians) == [0, 1, 2]  # stages of 1 and 2 layers, numbered as audits number them


def test_text_for_a_model_that_is_not_causal_is_one_error(tmp_path):
    folder = saved("bert", tmp_path)
    with pytest.raises(UsageError, match="no causal language model"):
        block_scores(folder, inputs_for("bert")["input_ids"])


def test_a_model_goes_back_to_its_device_after_the_walk():
    model = built("opt")
    walk_blocks(InPlace(model, torch.device("cpu")), inputs_for("opt"), Look())
    assert {value.device.type for value in model.parameters()} == {"cpu"}
