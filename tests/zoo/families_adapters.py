"""Adapters: the change that peft itself makes to its base, and the files that other tools write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from zoo.entry import Entry, Specimen
from zoo.oracle import Maps, maps_of
from zoo.specimens import save, stir
from zoo.tiny import tiny_config

PEFT, OTHERS, LIVE = "adapters: peft", "adapters: other tools", "adapters: live"
LINEAR = ["q_proj", "v_proj", "down_proj"]


class Convs(nn.Module):
    """Layers of every kind that LoRA has a form for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d, self.conv2d = nn.Conv1d(12, 16, 3), nn.Conv2d(12, 16, 3)
        self.embedding, self.linear = nn.Embedding(40, 16), nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv2d(x).mean((2, 3)))


def _llama() -> nn.Module:
    return import_module("transformers").LlamaForCausalLM(tiny_config("llama", {})).float()


def _gpt2() -> nn.Module:
    return import_module("transformers").GPT2LMHeadModel(tiny_config("gpt2", {})).float()


def adapter(name: str, base: Callable[[], nn.Module], config: str = "LoraConfig", **options: Any) -> Entry:
    """The line of a kind of adapter: its base, the name of peft's config, `set` for the values of that.

    `mode` is what is read: `delta`, `merged` or (with the weights alone, in one file) `bare`.
    """
    values, mode = options.pop("set", {}), options.pop("mode", "delta")
    with_base = options.pop("with_base", mode == "merged")

    def build(folder: Path) -> Specimen:
        model = base()
        stir(model)
        before = maps_of(model)
        _save_base(model, folder / "base")
        tuned = _tuned(model, config, values)
        tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
        after = maps_of(tuned.merge_and_unload())
        maps = _stored(after, folder / "base") if mode == "merged" else _changes(before, after)
        if mode == "bare":
            save_file(load_file(folder / "adapter" / "adapter_model.safetensors"), folder / "bare.safetensors")
            return Specimen((folder / "bare.safetensors",), maps)
        given = {"base": str(folder / "base"), "adapter_mode": mode} if with_base else {}
        return Specimen((folder / "adapter",), maps, options=given)

    return Entry(name, options.pop("kind", PEFT), build, "peft", **options)


def live(name: str, base: Callable[[], nn.Module], **options: Any) -> Entry:
    """The line of a PeftModel in memory: its base's weights and, apart from them, its changes."""
    values = options.pop("set", {})

    def build(_: Path) -> Specimen:
        model = base()
        stir(model)
        before = maps_of(model)
        tuned = _tuned(model, "LoraConfig", values)
        merged = maps_of(copy.deepcopy(tuned).merge_and_unload())
        changes = {f"{key}#lora": change for key, change in _changes(before, merged).items()}
        return Specimen((), before | changes, tuned)

    return Entry(name, LIVE, build, "peft", **options)


def _stored(maps: Maps, folder: Path) -> Maps:
    """Those of them that a file holds: a tied head is not in it."""
    (file,) = folder.glob("*.safetensors")
    names = set(load_file(file))
    return {key: matrix for key, matrix in maps.items() if f"{key}.weight" in names}


def _save_base(model: nn.Module, folder: Path) -> None:
    folder.mkdir()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save(model, folder)[1].unlink()


def _tuned(model: nn.Module, config: str, values: Mapping[str, Any]) -> Any:
    peft = import_module("peft")
    import_module("transformers").logging.disable_progress_bar()
    torch.manual_seed(1)
    tuned = peft.get_peft_model(model, getattr(peft, config)(**values))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tuned.eval()


def _changes(before: Maps, after: Maps) -> Maps:
    found = {key: after[key] - matrix for key, matrix in before.items() if key in after}
    return {key: change for key, change in found.items() if change.abs().max() > 1e-5}


# --- Other tools' files: factors by their names --------------------------------------------------------------------


def factors(name: str, leaves: tuple[str, str], scale: float, module: str, **options: Any) -> Entry:
    """The line of a naming: the leaves of the two factors, what their product is times, the module they stand at."""
    extra, shape = options.pop("extra", {}), options.pop("shape", (24, 16))

    def build(folder: Path) -> Specimen:
        generator = torch.Generator().manual_seed(0)
        down = torch.randn(4, *shape[1:], generator=generator)
        up = torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=generator)
        tensors = {f"{module}{leaves[0]}": down, f"{module}{leaves[1]}": up}
        tensors |= {f"{module}{leaf}": torch.tensor(value) for leaf, value in extra.items()}
        save_file(tensors, folder / "lora.safetensors")
        change = scale * up.flatten(1).double() @ down.flatten(1).double()
        return Specimen((folder / "lora.safetensors",), {module: change})

    return Entry(name, OTHERS, build, since="unreleased", **options)


def lycoris(name: str, **leaves: tuple[int, ...]) -> Entry:
    """The line of a kind of LyCORIS that is no product of two matrices."""

    def build(folder: Path) -> Specimen:
        generator = torch.Generator().manual_seed(0)
        at = "lora_unet_mid_block_attentions_0_proj_in"
        tensors = {f"{at}.{leaf}": torch.randn(shape, generator=generator) for leaf, shape in leaves.items()}
        save_file(tensors | {f"{at}.alpha": torch.tensor(1.0)}, folder / "lora.safetensors")
        return Specimen((folder / "lora.safetensors",), {})

    return Entry(name, OTHERS, build, refused=name, since="unreleased")


def _diffusers_pipeline(folder: Path) -> Specimen:
    """A U-net's LoRA as a pipeline of diffusers saves it."""
    diffusers, peft = import_module("diffusers"), import_module("peft")
    config = import_module("zoo.families_diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(**config.CROSS, **config.UP)
    stir(model)
    before = maps_of(model)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    state = peft.get_peft_model_state_dict(model)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
    model.fuse_lora()
    model.unload_lora()
    changes = _changes(before, maps_of(model))
    (file,) = folder.glob("*.safetensors")
    return Specimen((file,), {f"unet.{key}": change for key, change in changes.items()})


def _llama_cpp(folder: Path) -> Specimen:
    """A LoRA in GGUF, as llama.cpp's converter writes it."""
    package = import_module("gguf")
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 32, generator=generator), torch.randn(24, 4, generator=generator)
    writer = package.GGUFWriter(folder / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 10.0)
    for leaf, factor in (("lora_a", down), ("lora_b", up)):
        writer.add_tensor(f"blk.0.attn_q.weight.{leaf}", factor.numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file,
                  writer.close):  # fmt: skip
        write()
    return Specimen((folder / "lora.gguf",), {"blk.0.attn_q": 2.5 * up.double() @ down.double()})


LORA = {"r": 4, "lora_alpha": 10, "target_modules": LINEAR}
CONV1D = {"r": 4, "lora_alpha": 10, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
EVERY = {"r": 4, "lora_alpha": 10, "target_modules": ["conv1d", "conv2d", "embedding", "linear"]}
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PROCESSOR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
KIND = {"refused": "adapter is of type"}

ENTRIES = [
    adapter("LoRA", _llama, set=LORA),
    adapter("rsLoRA", _llama, set={**LORA, "use_rslora": True}),
    adapter("DoRA", _llama, set={**LORA, "use_dora": True}, with_base=True),
    adapter("LoRA of every layer", _llama, set={**LORA, "target_modules": "all-linear"}),
    adapter("LoRA of a token embedding", _llama, set={**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    adapter("LoRA with ranks by pattern", _llama, set={**LORA, "rank_pattern": {"q_proj": 6},
                                                       "alpha_pattern": {"down_proj": 3}}),
    adapter("LoRA, merged", _llama, set=LORA, mode="merged"),
    adapter("DoRA, merged", _llama, set={**LORA, "use_dora": True}, mode="merged"),
    adapter("LoRA of Conv1D", _gpt2, set=CONV1D),
    adapter("LoRA of Conv1D, merged", _gpt2, set=CONV1D, mode="merged"),
    adapter("LoRA of convolutions and embeddings", Convs, set=EVERY),
    adapter("LoRA of convolutions and embeddings, merged", Convs, set=EVERY, mode="merged"),
    adapter("LoRA without its config", _llama, set={**LORA, "lora_alpha": 4}, mode="bare", since="unreleased"),
    adapter("LoHa", _llama, "LoHaConfig", set={"r": 4, "target_modules": LINEAR}, **KIND),
    adapter("LoKr", _llama, "LoKrConfig", set={"r": 4, "target_modules": LINEAR}, **KIND),
    adapter("IA³", _llama, "IA3Config", set={"target_modules": LINEAR, "feedforward_modules": ["down_proj"]}, **KIND),
    adapter("OFT", _llama, "OFTConfig", set={"oft_block_size": 8, "target_modules": LINEAR}, **KIND),
    adapter("VeRA", _llama, "VeraConfig", set={"r": 4, "target_modules": ["q_proj"]}, **KIND),
    live("PeftModel", _llama, set=LORA, since="unreleased"),
    live("PeftModel of Conv1D", _gpt2, set=CONV1D, since="unreleased"),
    live("PeftModel of convolutions and embeddings", Convs, set=EVERY, since="unreleased"),
    factors("kohya", (".lora_down.weight", ".lora_up.weight"), 0.5, KOHYA, extra={".alpha": 2.0}),
    factors("LoCon", (".lora_down.weight", ".lora_up.weight"), 0.5, KOHYA, extra={".alpha": 2.0},
            shape=(24, 16, 3, 3)),
    factors("kohya without alpha", (".lora_down.weight", ".lora_up.weight"), 1.0, KOHYA),
    factors("diffusers, by processor", ("_lora.down.weight", "_lora.up.weight"), 1.0, f"{PROCESSOR}.processor.to_q"),
    factors("diffusers, by layer", (".lora.down.weight", ".lora.up.weight"), 1.0, f"{PROCESSOR}.to_q"),
    factors("XLabs", (".lora_A.weight", ".lora_B.weight"), 1.0, "transformer.single_transformer_blocks.0.attn.to_q"),
    Entry("diffusers, by pipeline", OTHERS, _diffusers_pipeline, "diffusers", since="unreleased"),
    Entry("llama.cpp", OTHERS, _llama_cpp, "gguf", since="unreleased"),
    lycoris("LoHa", hada_w1_a=(24, 4), hada_w1_b=(4, 16), hada_w2_a=(24, 4), hada_w2_b=(4, 16)),
    lycoris("LoKr", lokr_w1=(4, 4), lokr_w2=(6, 4)),
]  # fmt: skip
