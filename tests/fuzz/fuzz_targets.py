"""What reads other people's files, each with honest inputs to begin from and the use that is made of them."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fuzz_mutations as mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save as safetensors_bytes

import tailwise as tw
from tailwise.audits.codec import MEMBERS
from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import TailwiseError
from tailwise.judging.diagnosis.diagnose import diagnose
from tailwise.judging.gates.checking import check
from tailwise.judging.gates.parse import read_expectations
from tailwise.report.output_files import to_csv, to_json
from tailwise.report.terminal import by_role, console, layers

#: Seconds of computing that no small input may take.
SLOW = 20.0


@dataclass(frozen=True)
class Target:
    """`make` writes one damaged input into a folder; `use` does with it what a user would."""

    make: Callable[[random.Random, Path], Path]
    use: Callable[[Path], object]


@dataclass(frozen=True)
class Outcome:
    """`read`, `told` (one of our errors), `slow`, or the name of an exception that should not have been."""

    kind: str
    detail: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether a user would be served."""
        return self.kind in ("read", "told")


def attempt(name: str, seed: int, folder: Path) -> Outcome:
    """One input of a target, by its number."""
    target = TARGETS[name]
    _empty(folder)
    path = target.make(random.Random(f"{name} {seed}"), folder)
    if name == "compressed":
        _import_the_codec()
    began = time.process_time()
    try:
        target.use(path)
        outcome = Outcome("read")
    except TailwiseError as error:
        outcome = Outcome("told", type(error).__name__)
        str(error).encode()
    except Exception as error:
        outcome = Outcome(type(error).__name__, f"{_place(error)}: {error}"[:300])
    took = time.process_time() - began
    return Outcome("slow", f"{took:.0f} s") if outcome.is_fine and took > SLOW else outcome


def _empty(folder: Path) -> None:
    """A folder without anything in it; making and removing folders would take longer than many inputs do."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(folder):
        shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else Path(entry.path).unlink()


def _place(error: BaseException) -> str:
    trace, found = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "tailwise" in file and "fuzz" not in file:
            found = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


# Honest inputs


@lru_cache(maxsize=1)
def weights() -> dict[str, torch.Tensor]:
    """A tiny Llama's, and a kernel."""
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (24, 16),
        "model.layers.0.self_attn.q_proj.weight": (16, 16),
        "model.layers.0.self_attn.k_proj.weight": (8, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 20),
        "model.layers.0.input_layernorm.weight": (16,),
        "vision.conv.weight": (8, 3, 3, 3),
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@lru_cache(maxsize=1)
def honest_safetensors() -> bytes:
    """A file of these weights."""
    whole: bytes = safetensors_bytes(weights(), {"format": "pt"})
    return whole


CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 20, "vocab_size": 24,
    "rope_scaling": {"factor": 2.0}, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
_QUANTIZED: tuple[dict[str, Any], ...] = (
    {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False, "sym": True},
    {"quant_method": "awq", "bits": 4, "group_size": 8, "zero_point": True, "version": "gemm"},
    {"quant_method": "fp8", "weight_block_size": [8, 8]},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
)  # fmt: skip
_COMPRESSED: tuple[dict[str, Any], ...] = tuple(
    {"quant_method": "compressed-tensors", "format": layout, "config_groups": {
        "group_0": {"targets": targets, "weights": {"num_bits": 4, "type": kind, **strategy}}}}
    for layout, targets, kind, strategy in (
        ("pack-quantized", ["Linear"], "int", {"strategy": "channel"}),
        ("pack-quantized", ["re:.*up_proj"], "int", {"strategy": "group", "group_size": 8}),
        ("nvfp4-pack-quantized", ["Linear"], "float", {"strategy": "tensor_group", "group_size": 16}),
    )
)  # fmt: skip


def _packed(rng: random.Random) -> dict[str, torch.Tensor]:
    """Words, scales and zeros, in shapes that may not fit each other."""

    def side() -> int:
        return rng.choice((1, 2, 4, 8, 16, 64))

    def shape() -> tuple[int, ...]:
        return tuple(side() for _ in range(rng.choice((0, 1, 2, 2, 2, 2, 3))))

    kinds = (torch.int32, torch.uint8, torch.float16, torch.float32, torch.int8, torch.int64)
    leaves = ("qweight", "scales", "qzeros", "g_idx", "weight_scale_inv", "weight", "weight_packed", "weight_scale",
              "weight_shape", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "biases",
              "weight_scale_2", "blocks", "weight_g", "weight_v")  # fmt: skip
    chosen = rng.sample(leaves, rng.choice((2, 3, 4)))
    return {f"model.layers.0.mlp.up_proj.{leaf}": torch.ones(shape(), dtype=rng.choice(kinds)) for leaf in chosen}


@lru_cache(maxsize=1)
def honest_audit() -> tw.Audit:
    """Of matrices large enough for verdicts."""
    rng = np.random.default_rng(0)
    names = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head")
    model = {f"{name}.weight": rng.standard_normal((64, 56)) for name in names}
    return tw.audit({**model, "norm.weight": np.ones(9)}, use_cache=False, randomize=1)


@lru_cache(maxsize=1)
def _audit_parts() -> dict[str, bytes]:
    sink = Path(_scratch()) / "honest.audit"
    honest_audit().save(sink)
    with zipfile.ZipFile(sink) as archive:
        return {name: archive.read(name) for name in MEMBERS}


@lru_cache(maxsize=1)
def _scratch() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="tailwise-fuzz-")


# Inputs, damaged


def _safetensors(rng: random.Random, folder: Path) -> Path:
    whole = honest_safetensors()
    length = int.from_bytes(whole[:8], "little")
    path = folder / "model.safetensors"
    if rng.random() < 0.5:
        header = mutations.text_of(mutations.of_document(json.loads(whole[8 : 8 + length]), rng))
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    else:
        path.write_bytes(mutations.of_bytes(whole, rng))
    return path


def _folder(folder: Path, **files: Any) -> Path:
    (folder / "model.safetensors").write_bytes(honest_safetensors())
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def _damaged_json(document: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.8:
        return mutations.text_of(mutations.of_document(document, rng))
    return mutations.of_bytes(mutations.text_of(document), rng)


def _config(rng: random.Random, folder: Path) -> Path:
    if rng.random() < 0.7:
        return _quantized(rng, folder, _QUANTIZED)
    return _folder(folder, config__json=_damaged_json(CONFIG, rng))


def _compressed(rng: random.Random, folder: Path) -> Path:
    return _quantized(rng, folder, _COMPRESSED)


def _quantized(rng: random.Random, folder: Path, kinds: tuple[dict[str, Any], ...]) -> Path:
    settings = {**CONFIG, "quantization_config": rng.choice(kinds)}
    damaged = mutations.text_of(settings) if rng.random() < 0.3 else _damaged_json(settings, rng)
    (folder / "config.json").write_bytes(damaged)
    (folder / "model.safetensors").write_bytes(safetensors_bytes({**weights(), **_packed(rng)}, {"format": "pt"}))
    return folder


@lru_cache(maxsize=1)
def _shards() -> dict[str, tuple[list[str], bytes]]:
    names = list(weights())
    found = {}
    for number in (0, 1):
        part = {name: weights()[name] for name in names[number::2]}
        found[f"model-0000{number + 1}-of-00002.safetensors"] = (list(part), safetensors_bytes(part, {"format": "pt"}))
    return found


def _index(rng: random.Random, folder: Path) -> Path:
    for shard, (_, data) in _shards().items():
        (folder / shard).write_bytes(data)
    weight_map = {name: shard for shard, (names, _) in _shards().items() for name in names}
    document = {"metadata": {"total_size": 10}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_bytes(_damaged_json(document, rng))
    return folder


@lru_cache(maxsize=1)
def _honest_gguf() -> bytes:
    import gguf

    path = Path(_scratch()) / "honest.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_uint32("llama.embedding_length", 32)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    rng = np.random.default_rng(0)
    writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((16, 32)).astype(np.float32))
    packed = gguf.quants.quantize(rng.standard_normal((16, 32)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _gguf(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(mutations.of_bytes(_honest_gguf(), rng))
    return path


@lru_cache(maxsize=1)
def _honest_onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {"fc.weight": (16, 12), "conv.weight": (8, 3, 3, 3), "q.weight": (16, 16)}
    held = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), n) for n, shape in arrays.items()]
    held += [
        numpy_helper.from_array(np.ones((16, 16), np.int8), "codes"),
        numpy_helper.from_array(np.float32(0.5), "scale"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "fc.weight"], ["a"], transB=1),
        helper.make_node("Conv", ["x", "conv.weight"], ["b"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["a", "w"], ["c"]),
        helper.make_node("MatMul", ["c", "q.weight"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    whole: bytes = helper.make_model(graph).SerializeToString()
    return whole


@lru_cache(maxsize=1)
def _honest_keras() -> bytes:
    import h5py

    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file.attrs["layer_names"] = [b"dense", b"conv"]
        for layer, shape in (("dense", (12, 16)), ("conv", (3, 3, 4, 8))):
            group_ = file.create_group(layer)
            group_.attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
            group_.create_dataset(f"{layer}/kernel:0", data=np.ones(shape, np.float32))
    return sink.getvalue()


@lru_cache(maxsize=1)
def _honest_arrays() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **{"a.weight": np.ones((16, 12)), "b.weight": np.ones((8, 8), np.float16)})
    return sink.getvalue()


@lru_cache(maxsize=1)
def _honest_distributed() -> Path:
    import torch.distributed.checkpoint as dcp

    folder = Path(_scratch()) / "dcp"
    dcp.save({"model": weights(), "step": 3}, checkpoint_id=str(folder))
    return folder


def _whole_file(name: str, honest: Callable[[], bytes]) -> Callable[[random.Random, Path], Path]:
    def make(rng: random.Random, folder: Path) -> Path:
        path = folder / name
        whole = honest()
        path.write_bytes(mutations.of_bytes(whole, rng, whole))
        return path

    return make


def _distributed(rng: random.Random, folder: Path) -> Path:
    for part in _honest_distributed().iterdir():
        data = part.read_bytes()
        damaged = rng.random() < (0.8 if part.name == ".metadata" else 0.2)
        (folder / part.name).write_bytes(mutations.of_bytes(data, rng, data) if damaged else data)
    return folder


@lru_cache(maxsize=2)
def _honest_pickle(new: bool) -> bytes:
    sink = io.BytesIO()
    saved = {"state_dict": weights(), "epoch": 3, "losses": [0.5, 1.5], "shared": [(1, 2)] * 3}
    torch.save(saved, sink, _use_new_zipfile_serialization=new)
    return sink.getvalue()


def _pickle(rng: random.Random, folder: Path) -> Path:
    path = folder / "model.pt"
    new = rng.random() < 0.7
    whole = _honest_pickle(new)
    if not new or rng.random() < 0.3:
        path.write_bytes(mutations.of_bytes(whole, rng, whole))
        return path
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as archive:
        for name in old.namelist():
            data = old.read(name)
            archive.writestr(name, mutations.of_bytes(data, rng, data) if name.endswith("data.pkl") else data)
    return path


def _adapter(rng: random.Random, folder: Path) -> Path:
    module = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(4, 20), f"{module}.lora_B.weight": torch.ones(16, 4)}
    if rng.random() < 0.3:
        tensors[f"{module}.lora_magnitude_vector"] = torch.ones(rng.choice(((16,), (1,), (4, 4))))
    if rng.random() < 0.5:
        name = rng.choice(list(tensors))
        tensors[name] = torch.ones(tuple(rng.choice((0, 1, 4, 7)) for _ in range(rng.randrange(4))))
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"], "use_rslora": False,
                "fan_in_fan_out": False, "alpha_pattern": {"down_proj": 16}, "rank_pattern": {}, "use_dora": False,
                "base_model_name_or_path": "org/base"}  # fmt: skip
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    (folder / "adapter_config.json").write_bytes(_damaged_json(settings, rng))
    return folder


@lru_cache(maxsize=4)
def _table_of(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def _damaged_table(data: bytes, rng: random.Random) -> bytes:
    table = _table_of(data)
    name = rng.choice(table.column_names)
    place, values = table.column_names.index(name), table.column(name).to_pylist()
    kind = rng.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.rename_columns([f"{each}x" if each == name else each for each in table.column_names])
    elif kind == 2:
        table = table.slice(0, rng.randrange(len(table) + 1))
    else:
        row = rng.randrange(len(values))
        values[row] = (
            mutations.of_document(values[row], rng) if isinstance(values[row], list) else rng.choice(mutations.ODD)
        )
        try:
            new = pa.array(values, None if kind == 3 else table.column(name).type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            new = pa.array([None] * len(values), table.column(name).type)
        table = table.set_column(place, name, new)
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink)
    except pa.ArrowNotImplementedError:  # what Parquet cannot hold is in no file
        return data
    return sink.getvalue()


def _audit(rng: random.Random, folder: Path) -> Path:
    parts = dict(_audit_parts())
    name = rng.choice(MEMBERS)
    if rng.random() < 0.25:
        parts[name] = mutations.of_bytes(parts[name], rng)
    elif name == "provenance.json":
        parts[name] = mutations.text_of(mutations.of_document(json.loads(parts[name]), rng))
    else:
        parts[name] = _damaged_table(parts[name], rng)
    path = folder / "x.audit"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in parts.items():
            archive.writestr(member, data)
    if rng.random() < 0.1:
        path.write_bytes(mutations.of_bytes(path.read_bytes(), rng))
    return path


def _plan(rng: random.Random, folder: Path) -> Path:
    entry = {"matrix": "l.0.w", "role": "mlp_up", "block": 0, "shape": [8, 8], "parameters": 64, "sparsity": 0.5,
             "pattern": "unstructured", "metrics": {"alpha": 2.5}, "reason": "made here"}  # fmt: skip
    document = {
        "tailwise_plan": 1, "kind": "prune", "operator": "magnitude", "allocator": "uniform", "model": "m",
        "fingerprint": "f", "settings": {"clamp": True}, "budget": {"sparsity": 0.5}, "notes": ["a"],
        "tried": [{"loss": 1.0}], "entries": {"l.0.w.weight": entry, "l.1.w.weight": {**entry, "matrix": "l.1.w"}},
    }  # fmt: skip
    if rng.random() < 0.85:  # YAML takes ten times as long
        path = folder / "plan.json"
        path.write_bytes(_damaged_json(document, rng))
        return path
    path = folder / "plan.yaml"
    damaged = mutations.of_document(document, rng) if rng.random() < 0.6 else document
    text = yaml.safe_dump(damaged).encode(errors="replace")
    path.write_bytes(text if damaged is not document else mutations.of_bytes(text, rng, text))
    return path


_GATES = b"""baseline = "base.audit"
[[expect]]
that = "alpha in [2, 6]"
roles = ["mlp_up"]
[[expect]]
metric = "alpha_hill"
max = 4
allow = 0.1
[[expect]]
summary = "mean_alpha"
min = 0
[[expect]]
finding = "warning"
"""


def _gates(rng: random.Random, folder: Path) -> Path:
    path = folder / "gates.toml"
    lines = _GATES.splitlines(keepends=True)
    if rng.random() < 0.5:
        rng.shuffle(lines)
    path.write_bytes(mutations.of_bytes(b"".join(lines), rng, _GATES))
    return path


# What is done with them


def _read_model(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        sources, _ = group(checkpoint, conv="flatten", min_evals=4)
        for source in sources:
            try:
                for matrix in load(source, checkpoint):
                    for _ in matrix.row_blocks(1 << 16):
                        pass
            except TailwiseError:
                continue  # a row that says so


@lru_cache(maxsize=1)
def _import_the_codec() -> None:
    """The library that unpacks takes seconds to be imported, whatever the input is."""
    import compressed_tensors  # noqa: F401


def _read_audit(path: Path) -> None:
    audit = tw.Audit.load(path)
    diagnosis = diagnose(audit)
    diagnosis.to_json()
    to_json(audit).encode()
    to_csv(audit.table())
    tw.compare(audit, honest_audit())
    if path.stat().st_size % 4:  # drawing takes longer than all else
        return
    with console(file=io.StringIO()).capture() as _:
        screen = console(file=io.StringIO())
        screen.print(layers(audit))
        screen.print(by_role(audit))


def _read_plan(path: Path) -> None:
    plan = Plan.load(path)
    plan.validate()
    plan.save(path.with_name("again.json"))
    plan.save(path.with_name("again.yaml"))


def _read_gates(path: Path) -> None:
    check(honest_audit(), read_expectations(path), baseline=honest_audit())


TARGETS: Mapping[str, Target] = {
    "safetensors": Target(_safetensors, _read_model),
    "index": Target(_index, _read_model),
    "config": Target(_config, _read_model),
    "compressed": Target(_compressed, _read_model),
    "gguf": Target(_gguf, _read_model),
    "pickle": Target(_pickle, _read_model),
    "onnx": Target(_whole_file("model.onnx", _honest_onnx), _read_model),
    "keras": Target(_whole_file("model.h5", _honest_keras), _read_model),
    "arrays": Target(_whole_file("model.npz", _honest_arrays), _read_model),
    "distributed": Target(_distributed, _read_model),
    "adapter": Target(_adapter, _read_model),
    "audit": Target(_audit, _read_audit),
    "plan": Target(_plan, _read_plan),
    "gates": Target(_gates, _read_gates),
}
