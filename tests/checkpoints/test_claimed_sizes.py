"""Files of a kilobyte that claim axes and blocks without end: nothing is taken apart or spread out for them."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.checkpoints.matrices import group
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.spread import spread
from tailwise.core.errors import UnreadableError

MANY = 1 << 40


def header_only(path, tensors, config=None):
    """A safetensors file of tensors without entries, beside one that has some."""
    header = {"w": {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 1024]}}
    header |= {name: {"dtype": "F32", "shape": shape, "data_offsets": [1024, 1024]} for name, shape in tensors.items()}
    text = json.dumps(header).encode()
    path.mkdir()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(1024))
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", [MANY, 0, 16], {}),
        ("model.layers.0.mlp.experts.gate_up_proj", [MANY, 16, 0], {}),
        ("model.layers.0.mlp.experts.down_proj", [0, MANY, 16], {}),
        ("conv.weight", [16, 0, MANY], {}),
        ("transformer.blocks.0.ffn.experts.mlp.w1", [0, 16], {"ffn_config": {"moe_num_experts": MANY}}),
        ("transformer.blocks.0.ffn.experts.mlp.w1", [MANY, 0], {"ffn_config": {"moe_num_experts": MANY}}),
        ("h.0.attn.query_key_value.weight", [3 * MANY, 0],
         {"model_type": "bloom", "num_attention_heads": MANY, "hidden_size": MANY}),
    ],
)  # fmt: skip
def test_a_tensor_without_entries_is_one_row(tmp_path, name, shape, config):
    found, rest = group(
        open_checkpoint(header_only(tmp_path / "m", {name: shape}, config)), conv="flatten", min_evals=8
    )
    assert [source.name for source in found] == ["w"]
    assert [(row.name, row.status) for row in rest] == [(name, "TOO_SMALL")]


def test_a_stack_of_matrices_that_are_too_small_is_one_row(tmp_path):
    stack = {"model.layers.0.mlp.experts.down_proj": torch.zeros(100_000, 2, 2)}
    save_file({"w": torch.zeros(16, 16), **stack}, tmp_path / "m.safetensors")
    found, rest = group(open_checkpoint(tmp_path / "m.safetensors"), conv="flatten", min_evals=8)
    assert [source.name for source in found] == ["w"]
    assert [row.status for row in rest] == ["TOO_SMALL"]
    found, _ = group(open_checkpoint(tmp_path / "m.safetensors"), conv="flatten", min_evals=2)
    assert len(found) == 100_001


@pytest.mark.parametrize("shape", [(MANY, 0), (MANY,)])
@pytest.mark.filterwarnings("ignore")
def test_layers_of_a_distributed_checkpoint_are_counted_by_what_is_there(tmp_path, shape):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    dcp.save({"layers.w": torch.ones(4, 16, 16)}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    assert len(open_checkpoint(tmp_path).tensors) == 4
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata["layers.w"]
    entry.size = torch.Size(shape)
    if 0 in shape:
        entry.chunks = []
    else:
        entry.chunks[0].sizes, entry.chunks[0].offsets = torch.Size(shape), torch.Size((0,))
        (key,) = metadata.storage_data
        metadata.storage_data = {type(key)("layers.w", torch.Size((0,))): metadata.storage_data[key]}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UnreadableError, match=r"a chunk would be bytes|empty"):
        tw.audit(tmp_path, use_cache=False)


def onnx_model(path, nodes, constants):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*node, **settings) for *node, settings in nodes], "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 16])], [onnx.helper.make_tensor_value_info("y", 1, [1, 16])],
        [onnx.helper.make_tensor(name, kind, shape, np.asarray(values).tobytes(), raw=True)
         for name, kind, shape, values in constants],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), path)
    return path


CODES = np.random.default_rng(0).integers(-100, 100, (16, 16)).astype(np.int8)
DEQUANTIZED = [("MatMul", ["x", "d"], ["y"], {})]


def test_a_block_of_onnx_may_be_longer_than_the_axis(tmp_path):
    node = ("DequantizeLinear", ["w", "s"], ["d"], {"axis": 1, "block_size": MANY})
    constants = [("w", 3, CODES.shape, CODES), ("s", 1, (16, 1), np.full(16, 0.5, np.float32))]
    model = open_checkpoint(onnx_model(tmp_path / "m.onnx", [node, *DEQUANTIZED], constants))
    assert model.read(*model.tensors).tolist() == (CODES * 0.5).tolist()


@pytest.mark.parametrize("shape", [(100_000, 1), (100_000,), (100_000, 1, 1), (100_000, 16)])
def test_more_scales_than_codes_are_told(tmp_path, shape):
    node = ("DequantizeLinear", ["w", "s"], ["d"], {"axis": 1, "block_size": 16})
    constants = [("w", 3, CODES.shape, CODES), ("s", 1, shape, np.ones(shape, np.float32))]
    model = open_checkpoint(onnx_model(tmp_path / "m.onnx", [node, *DEQUANTIZED], constants))
    with pytest.raises(UnreadableError, match="scales do not fit"):
        model.read(*model.tensors)


def test_directions_of_a_recurrent_layer_are_two_at_most(tmp_path):
    nodes = [("LSTM", ["x", "W", "R"], ["y"], {"hidden_size": 4})]
    path = onnx_model(tmp_path / "m.onnx", nodes, [("W", 1, (MANY, 0, 4), []), ("R", 1, (MANY, 0, 4), [])])
    with pytest.raises(UnreadableError, match="2 of its 2 tensors are empty"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("size", "status"),
    [(64, "FEW_EIGENVALUES"), (MANY, "FEW_EIGENVALUES"), (0, "UNSUPPORTED"), (-1, "UNSUPPORTED")],
)
def test_a_block_of_bitsandbytes_may_be_longer_than_the_weight(tmp_path, size, status):
    state = json.dumps({"shape": [16, 16], "blocksize": size, "quant_type": "nf4", "dtype": "float32"}).encode()
    codes = torch.randint(0, 256, (128, 1), dtype=torch.uint8, generator=torch.manual_seed(0))
    tensors = {
        "l.weight": codes, "l.weight.absmax": torch.ones(4), "l.weight.quant_map": torch.linspace(-1, 1, 16),
        "l.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
    }  # fmt: skip
    save_file(tensors, tmp_path / "m.safetensors")
    rows = {row.name: row.status for row in tw.audit(tmp_path / "m.safetensors", use_cache=False).rows}
    assert rows.get("l", rows.get("l.weight")) == status


@pytest.mark.parametrize("block", [1, 3, 4, 7, 8, MANY])
def test_spread(block):
    values = torch.arange(24.0).reshape(8, 3)
    wide = torch.stack([values[i // block] for i in range(7)])
    assert torch.equal(spread(values, block, 7, 0), wide)
    assert torch.equal(spread(values.T, block, 7, 1), wide.T)
    with pytest.raises(RuntimeError):
        spread(values, 1, 9, 0)
