"""Which matrices a checkpoint holds, and reading them without reading the rest."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.matrices import TensorView, group, load
from tailwise.checkpoints.views import ViewMatrix


class Recording(MemoryCheckpoint):
    """Remembers what was read."""

    def __init__(self, arrays, **options):
        super().__init__("recording", arrays, **options)
        self.reads = []

    def read_rows(self, name, start, stop):
        self.reads.append((name, start, stop))
        return super().read_rows(name, start, stop)


def grouped(checkpoint, conv="flatten", min_evals=8):
    found, rest = group(checkpoint, conv=conv, min_evals=min_evals)
    return {source.name: source for source in found}, {unmeasured.name: unmeasured for unmeasured in rest}


def matrix(view, tensor):
    """What `TensorView` documents, written with plain indexing."""
    whole = (tensor if view.permute is None else tensor.permute(view.permute)).reshape(view.shape)
    start, stop, step = view.cols
    return torch.cat([whole[a:b] for a, b in view.rows])[:, start:stop:step]


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, tailwise.checkpoints.matrices, tailwise.checkpoints.formats.peft;sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("max_bytes", [1, 100, 1000, 1 << 20])
@pytest.mark.parametrize(
    "view",
    [
        TensorView("x", (24, 10), ((0, 24),), (0, 10, 1)),
        TensorView("x", (24, 10), ((3, 9), (15, 16), (20, 24)), (0, 10, 1)),
        TensorView("x", (24, 10), ((3, 9), (15, 24)), (1, 10, 3)),
        TensorView("x", (6, 40), ((2, 5),), (0, 40, 1)),
        TensorView("x", (10, 24), ((2, 5), (7, 9)), (4, 20, 2), (2, 0, 1)),
        TensorView("x", (24, 10), ((2, 13),), (0, 10, 2), (1, 0, 2)),
    ],
)
def test_row_blocks_are_the_rows_in_order_and_of_bounded_size(view, max_bytes):
    tensor = torch.randn(6, 4, 10)
    blocks = list(ViewMatrix(view, MemoryCheckpoint("m", {"x": tensor})).row_blocks(max_bytes))
    assert torch.equal(torch.cat(blocks), matrix(view, tensor))
    assert all(block.shape[0] == 1 or block.shape[0] * view.shape[1] * 4 <= max_bytes for block in blocks)


def test_rows_of_a_matrix_are_read_without_the_others():
    checkpoint = Recording({"x": torch.randn(100, 20)})
    view = TensorView("x", (100, 20), ((10, 30), (50, 60)), (0, 20, 1))
    list(ViewMatrix(view, checkpoint).row_blocks(8 * 20 * 4))
    read = {row for _, start, stop in checkpoint.reads for row in range(start, stop)}
    assert read == {*range(10, 30), *range(50, 60)}
    assert all(stop - start <= 8 for _, start, stop in checkpoint.reads)


def test_one_expert_is_read_once_and_without_the_others():
    experts = torch.randn(5, 24, 16)
    config = {"model_type": "mixtral", "hidden_size": 16, "intermediate_size": 12}
    checkpoint = Recording({"layers.0.mlp.experts.gate_up_proj": experts}, config=config)
    found, _ = grouped(checkpoint)
    assert checkpoint.reads == []
    source = found["layers.0.mlp.experts.gate_up_proj[3]#up"]
    (expert,) = load(source, checkpoint)
    assert torch.equal(torch.cat(list(expert.row_blocks(64))), experts[3, 12:])
    assert checkpoint.reads == [("layers.0.mlp.experts.gate_up_proj", 3, 4)]
    assert source.nbytes == 12 * 16 * 4


def test_half_precision_and_fp8_rows_keep_their_dtype():
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        tensor = torch.randn(12, 9).to(dtype)
        view = TensorView("x", (12, 9), ((0, 2), (5, 12)), (0, 9, 2))
        (block,) = ViewMatrix(view, MemoryCheckpoint("m", {"x": tensor})).row_blocks(1 << 20)
        assert block.dtype == dtype
        assert torch.equal(block.float(), matrix(view, tensor.float()))


@pytest.mark.parametrize("kernel", [(3,), (3, 5), (2, 3, 4)])
def test_kernels_flatten_slices_pooled(kernel):
    W = torch.randn(16, 12, *kernel)
    checkpoint = MemoryCheckpoint("m", {"stem.conv.weight": W})
    (flat,) = grouped(checkpoint)[0].values()
    assert (flat.name, flat.kind, flat.role, flat.rows) == ("stem.conv", "conv", "conv", 16)
    assert torch.equal(torch.cat(list(load(flat, checkpoint)[0].row_blocks(999))), W.flatten(1))

    slices, _ = grouped(checkpoint, "slices")
    positions = [tuple(i.tolist()) for i in torch.ones(kernel).nonzero()]
    assert list(slices) == [f"stem.conv[{','.join(map(str, p))}]" for p in positions]
    (pooled,) = grouped(checkpoint, "pooled")[0].values()
    assert (pooled.rows, pooled.cols, pooled.n_params) == (16, 12, W.numel())
    for position, source, view in zip(positions, slices.values(), load(pooled, checkpoint), strict=True):
        expected = W[:, :, *position]
        assert torch.equal(torch.cat(list(load(source, checkpoint)[0].row_blocks(999))), expected)
        assert torch.equal(torch.cat(list(view.row_blocks(999))), expected)


@pytest.mark.parametrize("name", ["up.0.deconv", "decoder.conv_transpose.1", "net.convtranspose2d"])
def test_transposed_kernels_have_out_first(name):
    W = torch.randn(12, 16, 3, 3)  # in × out × k × k
    checkpoint = MemoryCheckpoint("m", {f"{name}.weight": W})
    (flat,) = grouped(checkpoint)[0].values()
    assert (flat.rows, flat.cols) == (16, 12 * 9)
    expected = W.transpose(0, 1).flatten(1)
    assert torch.equal(torch.cat(list(load(flat, checkpoint)[0].row_blocks(999))), expected)
    slices, _ = grouped(checkpoint, "slices")
    source = slices[f"{flat.name}[1,2]"]
    assert torch.equal(torch.cat(list(load(source, checkpoint)[0].row_blocks(999))), W[:, :, 1, 2].T)


def test_the_class_of_a_live_module_decides_before_its_name():
    checkpoint = MemoryCheckpoint("m", {"a.weight": torch.randn(12, 16, 3), "upsample.weight": torch.randn(12, 16, 3)})
    checkpoint.module_kinds = {"a": "ConvTranspose1d", "upsample": "Conv1d"}
    found, _ = grouped(checkpoint)
    assert (found["a"].rows, found["upsample"].rows) == (16, 12)


def test_what_is_not_measured_is_listed_with_a_reason():
    W = torch.randn(20, 20)
    checkpoint = MemoryCheckpoint(
        "m",
        {
            "layers.0.mlp.up_proj.weight": W,
            "layers.0.mlp.up_proj.bias": torch.randn(20),
            "layers.0.norm.weight": torch.randn(20),
            "layers.0.small.weight": torch.randn(4, 20),
            "layers.0.mask": torch.ones(20, 20, dtype=torch.bool),
            "tied.weight": W,
            "empty.weight": torch.randn(0, 20),
            "scalar": torch.tensor(1.0),
        },
    )
    found, rest = grouped(checkpoint)
    assert list(found) == ["layers.0.mlp.up_proj"]
    assert {name: u.status for name, u in rest.items()} == {
        "layers.0.mlp.up_proj.bias": "NOT_A_MATRIX",
        "layers.0.norm.weight": "NOT_A_MATRIX",
        "layers.0.small.weight": "TOO_SMALL",
        "layers.0.mask": "NOT_A_MATRIX",
        "tied.weight": "SHARED",
        "empty.weight": "TOO_SMALL",
        "scalar": "NOT_A_MATRIX",
    }
    assert "min_evals" in rest["layers.0.small.weight"].reason
    assert "layers.0.mlp.up_proj" in rest["tied.weight"].reason


def test_tensors_of_equal_identity_are_measured_once():
    class Stored(MemoryCheckpoint):
        def identity(self, name):
            return "file:0" if name in ("a.weight", "b.weight") else f"file:{name}"

    arrays = {name: torch.randn(10, 10) for name in ("a.weight", "b.weight", "c.weight")}
    found, rest = grouped(Stored("m", arrays))
    assert list(found) == ["a", "c"]
    assert rest["b.weight"].status == "SHARED"


def test_small_parts_of_a_large_tensor_are_listed_alone():
    config = {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 32, "model_type": "phi3"}
    checkpoint = MemoryCheckpoint("m", {"layers.0.qkv_proj.weight": torch.randn(40, 32)}, config=config)
    found, rest = grouped(checkpoint)
    assert list(found) == ["layers.0.qkv_proj#q"]
    assert {(u.name, u.status, u.shape) for u in rest.values()} == {
        ("layers.0.qkv_proj#k", "TOO_SMALL", (4, 32)),
        ("layers.0.qkv_proj#v", "TOO_SMALL", (4, 32)),
    }


def test_names_stay_unique_where_a_suffix_would_collide():
    checkpoint = MemoryCheckpoint("m", {"x.weight": torch.randn(10, 10), "x": torch.randn(10, 10)})
    assert set(grouped(checkpoint)[0]) == {"x", "x.weight"}


def test_position_embeddings_with_a_leading_axis_are_one_matrix():
    checkpoint = MemoryCheckpoint("m", {"vit.embeddings.position_embeddings": torch.randn(1, 17, 32)})
    (source,) = grouped(checkpoint)[0].values()
    assert (source.rows, source.cols, source.kind, source.role) == (17, 32, "embedding", "pos_embed")
    assert torch.cat(list(load(source, checkpoint)[0].row_blocks(200))).shape == (17, 32)


def test_sources_are_in_the_checkpoints_order_and_picklable():
    import pickle

    checkpoint = MemoryCheckpoint("m", {f"layers.{i}.up_proj.weight": torch.randn(9, 9) for i in (2, 0, 1)})
    found, _ = group(checkpoint, conv="flatten", min_evals=8)
    assert [source.block for source in found] == [2, 0, 1]
    assert pickle.loads(pickle.dumps(found)) == found
    assert all(a.name != b.name for a, b in pairwise(found))
