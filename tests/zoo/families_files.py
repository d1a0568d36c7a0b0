"""Files of other libraries, and torch's files as training loops write them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry, Specimen
from zoo.oracle import Maps, maps_of
from zoo.specimens import stir

# Before anything imports Keras, which reads it once and asks for TensorFlow without it.
os.environ.setdefault("KERAS_BACKEND", "torch")

TORCH, ONNX, KERAS, NUMPY = "files: torch", "files: ONNX", "files: Keras", "files: NumPy"
NEW: Mapping[str, Any] = {"since": "unreleased"}


class Net(nn.Module):
    """A layer of every plain kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(40, 24), nn.Conv1d(24, 16, 3)
        self.layers = nn.ModuleList(nn.Linear(16, 16 + 8 * i) for i in range(2))
        self.norm = nn.LayerNorm(16)


def saved(name: str, write: Callable[[nn.Module, Path], Path | None], **options: Any) -> Entry:
    """The line of a way to save: `write` gets the model and a folder; it returns the file, or None for the folder."""
    prefix, kind = options.pop("prefix", ""), options.pop("kind", TORCH)

    def build(folder: Path) -> Specimen:
        torch.manual_seed(0)
        model = Net()
        stir(model)
        path = write(model, folder) or folder
        maps = {} if options.get("refused") else maps_of(model)
        return Specimen((path,), {f"{prefix}{key}": matrix for key, matrix in maps.items()})

    return Entry(name, kind, build, **options)


def _stepped(model: nn.Module) -> dict[str, Any]:
    """The state of an Adam that has moments of every weight."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def _loop(model: nn.Module, folder: Path) -> Path:
    state = {"epoch": 3, "model": model.state_dict(), "optimizer": _stepped(model), "loss": 0.5}
    torch.save(state, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def _lightning(model: nn.Module, folder: Path) -> Path:
    state = {"epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.5.0", "lr_schedulers": [],
             "state_dict": model.state_dict(), "optimizer_states": [_stepped(model)]}  # fmt: skip
    torch.save(state, folder / "last.ckpt")
    return folder / "last.ckpt"


def _vocoder(model: nn.Module, folder: Path) -> Path:
    torch.save({"generator": model.state_dict(), "optim_g": _stepped(model), "steps": 7}, folder / "g.pt")
    return folder / "g.pt"


def _averaged(model: nn.Module, folder: Path) -> Path:
    other = {name: tensor * 0.9 for name, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": other, "step": 7}, folder / "ema.pt")
    return folder / "ema.pt"


def _shards(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    state = list(model.state_dict().items())
    names = {}
    for i, part in enumerate((state[::2], state[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        save_file(dict(part), folder / file)
        names |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _bins(model: nn.Module, folder: Path) -> None:
    state = list(model.state_dict().items())
    names = {}
    for i, part in enumerate((state[::2], state[1::2])):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save(dict(part), folder / file)
        names |= {name: file for name, _ in part}
    index = {"metadata": {}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def _old_zip(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def _distributed(model: nn.Module, folder: Path) -> None:
    dcp = import_module("torch.distributed.checkpoint")
    dcp.save({"model": model.state_dict(), "optim": {"state": {}}}, checkpoint_id=folder, no_dist=True)


def _zero(model: nn.Module, folder: Path) -> Path:
    empty = {name: torch.zeros(0) for name in model.state_dict()}
    torch.save({"module": empty, "param_shapes": []}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    return folder / "zero_pp_rank_0_mp_rank_00_model_states.pt"


def _npz(model: nn.Module, folder: Path) -> Path:
    import numpy as np

    np.savez(folder / "model.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return folder / "model.npz"


def _llama_parts(folder: Path) -> Specimen:
    """Meta's release of a Llama on two ranks: columns of some layers apart, rows of others."""
    generator = torch.Generator().manual_seed(0)
    whole = {"tok_embeddings.weight": ((48, 32), 1), "output.weight": ((48, 32), 0), "norm.weight": ((32,), None)}
    for b in range(2):
        for leaf, shape, axis in (("attention.wq", (32, 32), 0), ("attention.wo", (32, 32), 1),
                                  ("feed_forward.w1", (40, 32), 0), ("feed_forward.w2", (32, 40), 1)):  # fmt: skip
            whole[f"layers.{b}.{leaf}.weight"] = (shape, axis)
    values = {name: torch.randn(shape, generator=generator) for name, (shape, _) in whole.items()}
    for rank in range(2):
        part = {name: value if whole[name][1] is None else value.chunk(2, whole[name][1])[rank].clone()
                for name, value in values.items()}  # fmt: skip
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps({"dim": 32, "n_heads": 4, "n_layers": 2}), encoding="utf-8")
    maps = {name.removesuffix(".weight"): value.double() for name, value in values.items() if value.ndim == 2}
    maps["tok_embeddings"] = maps["tok_embeddings"].T
    return Specimen((folder,), maps, roles={"tok_embeddings": "embed", "output": "lm_head"})


# --- ONNX: every operator is run by ONNX's own reference ------------------------------------------------------------


def onnx(name: str, operator: str, weight: tuple[int, ...], unit: tuple[int, ...], **options: Any) -> Entry:
    """The line of an operator: the shape of its weight, the shape of the unit inputs, its attributes."""
    attributes, external = options.pop("set", {}), options.pop("external", False)

    def build(folder: Path) -> Specimen:
        import numpy as np

        package = import_module("onnx")
        helper, one = package.helper, package.TensorProto
        values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
        inputs = ["layer.weight", "x"] if operator == "Gather" else ["x", "layer.weight"]
        node = helper.make_node(operator, inputs, ["y"], **attributes)
        kind = one.INT64 if operator == "Gather" else one.FLOAT
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", kind, None)],
            [helper.make_tensor_value_info("y", one.FLOAT, None)],
            [package.numpy_helper.from_array(values, "layer.weight")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        found = {"layer": _referenced(model, operator, unit)}
        extra = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
        package.save(model, str(folder / "model.onnx"), **extra)
        return Specimen((folder / "model.onnx",), found)

    return Entry(name, ONNX, build, "onnx", **options)


def _referenced(model: Any, operator: str, unit: tuple[int, ...]) -> torch.Tensor:
    """Outputs × inputs, by `onnx.reference`; of a transposed kernel outputs × inputs·positions."""
    import numpy as np

    run = import_module("onnx.reference").ReferenceEvaluator(model).run
    if operator == "Gather":
        return torch.from_numpy(run(None, {"x": np.arange(unit[0])})[0]).double().T
    size = int(np.prod(unit))
    out = run(None, {"x": np.eye(size, dtype=np.float32).reshape(size, *unit)})[0]
    fed = torch.from_numpy(out).double()
    if operator == "ConvTranspose":  # inputs × outputs × positions
        return fed.transpose(0, 1).reshape(fed.shape[1], -1)
    return fed.reshape(size, -1).T


# --- Keras, on torch ------------------------------------------------------------------------------------------------


def keras(name: str, layers: Callable[[Any], list[Any]], shape: tuple[int, ...], **options: Any) -> Entry:
    """The line of a model of Keras whose first layer is fed with unit inputs of `shape`."""
    file, feed = options.pop("file", "model.keras"), options.pop("feed", "dense")

    def build(folder: Path) -> Specimen:
        package = import_module("keras")
        package.utils.set_random_seed(0)
        model = package.Sequential([package.Input(shape), *layers(package)])
        (model.save_weights if file.endswith("weights.h5") else model.save)(folder / file)
        return Specimen((folder / file,), _fed_keras(model, feed))

    return Entry(name, KERAS, build, "keras", **options)


def _fed_keras(model: Any, feed: str) -> Maps:
    found: Maps = {}
    with torch.no_grad():
        for layer in model.layers:
            if feed == "embedding":
                out = layer(torch.arange(layer.input_dim)[None])[0]
            elif feed == "conv":  # kernel (k, in, out): one window of units
                size = layer.kernel.shape[0] * layer.kernel.shape[1]
                units = torch.eye(size).reshape(size, layer.kernel.shape[1], layer.kernel.shape[0]).transpose(1, 2)
                out = layer(units).reshape(size, -1)
            else:
                out = layer(torch.eye(layer.kernel.shape[0]))
            found[layer.name] = out.detach().T.double()
    return found


DENSE = {"use_bias": False}
ENTRIES = [
    saved("shards of safetensors with an index", _shards),
    saved("shards of .bin with an index", _bins),
    saved("the format before zip", _old_zip),
    saved("a training loop's, with its optimizer", _loop),
    saved("Lightning's", _lightning),
    saved("a vocoder's generator, with its optimizer", _vocoder, prefix="generator.", **NEW),
    saved("weights beside their average", _averaged, **NEW),
    saved("torch.distributed.checkpoint", _distributed, **NEW),
    saved("ZeRO-3's without weights", _zero, refused="rank", **NEW),
    Entry("Llama on two ranks", TORCH, _llama_parts, blocks=2, **NEW),
    saved("npz", _npz, kind=NUMPY, **NEW),
    onnx("MatMul", "MatMul", (24, 16), (24,), **NEW),
    onnx("Gemm", "Gemm", (24, 16), (24,), **NEW),
    onnx("Gemm, transposed", "Gemm", (16, 24), (24,), set={"transB": 1}, **NEW),
    onnx("Gather", "Gather", (40, 16), (40,), **NEW),
    onnx("Conv", "Conv", (16, 12, 3), (12, 3), **NEW),
    onnx("Conv of two axes", "Conv", (16, 8, 3, 2), (8, 3, 2), **NEW),
    onnx("ConvTranspose", "ConvTranspose", (24, 12, 4), (24, 1), **NEW),
    onnx("external data", "MatMul", (24, 16), (24,), external=True, **NEW),
    keras("Dense", lambda k: [k.layers.Dense(16, name="first", **DENSE)], (24,), **NEW),
    keras("Dense, h5", lambda k: [k.layers.Dense(16, name="first", **DENSE)], (24,), file="model.h5", **NEW),
    keras("Dense, weights alone", lambda k: [k.layers.Dense(16, name="first", **DENSE)], (24,),
          file="model.weights.h5", **NEW),
    keras("Conv1D", lambda k: [k.layers.Conv1D(16, 3, name="conv", **DENSE)], (8, 12), feed="conv", **NEW),
    keras("Embedding", lambda k: [k.layers.Embedding(40, 16, name="embedding")], (5,), feed="embedding", **NEW),
]  # fmt: skip
