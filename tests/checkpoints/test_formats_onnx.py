"""ONNX: what the graph multiplies by is what is measured, and nothing outside the file's folder is read."""

from __future__ import annotations

from collections import ChainMap

import fsspec
import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.formats import onnx_graph
from tailwise.checkpoints.matrices import group
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 16)).astype(np.float32)  # 12 in, 16 out


def model_of(nodes, arrays, inputs=(("x", None),), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def saved(tmp_path, *args, **options):
    onnx.save(model_of(*args, **options), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.rnn = torch.nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
        self.fc = torch.nn.Linear(12, 10)
        self.head = torch.nn.Linear(10, 4, bias=False)
        self.gru = torch.nn.GRU(4, 5)
        self.up = torch.nn.ConvTranspose1d(4, 3, 5)
        self.down = torch.nn.Conv1d(3, 2, 4)

    def forward(self, x):
        y, _ = self.rnn(self.embed(x))
        y = self.head(self.fc(y).relu())
        z, _ = self.gru(y)
        return self.down(self.up(y.transpose(1, 2))), z


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    torch.onnx.export(net, (torch.zeros(1, 7, dtype=torch.long),), str(path), dynamo=False)
    return net, path


@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports_has_the_modules_names_and_values(exported):
    net, path = exported
    opened = open_checkpoint(path)
    for name, tensor in net.state_dict().items():
        if "bias" in name and ("rnn" in name or "gru" in name):
            continue  # ONNX keeps a layer's two biases in one tensor
        module = name.rpartition(".")[0]
        stored = opened.read(name)
        assert torch.equal(
            stored.T if opened.module_kinds.get(module) == "MatMul" and stored.ndim > 1 else stored, tensor
        )
    assert opened.module_kinds["up"] == "ConvTranspose1d"
    assert opened.module_kinds["embed"] == "Embedding"
    assert opened.module_kinds["fc"] == "MatMul"


@pytest.mark.filterwarnings("ignore")
def test_an_export_measures_as_the_live_module(exported):
    net, path = exported
    ours, theirs = tw.audit(path, min_evals=2), tw.audit(net, min_evals=2)
    assert {layer.row.name for layer in ours} == {layer.row.name for layer in theirs}
    for layer in theirs:
        np.testing.assert_allclose(ours[layer.row.name].spectrum.eigenvalues, layer.spectrum.eigenvalues, rtol=1e-6)
        assert ours[layer.row.name].row.role == layer.row.role


@pytest.mark.parametrize(
    ("node", "array", "kind"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), W, "MatMul"),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), W, "Linear"),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), W, "MatMul"),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), W.T.copy(), "Linear"),
        (helper.make_node("Gather", ["w", "x"], ["y"]), W, "Embedding"),
        (helper.make_node("Conv", ["x", "w"], ["y"]), RNG.normal(size=(4, 3, 2, 2)).astype(np.float32), "Conv2d"),
    ],
)
def test_the_operator_says_what_a_weight_is(tmp_path, node, array, kind):
    opened = open_checkpoint(saved(tmp_path, [node], {"w": array}))
    assert opened.module_kinds == {"w": kind}
    assert np.array_equal(opened.read("w.weight").numpy(), array)


@pytest.mark.parametrize("op", ["Transpose", "Identity", "Cast", "both"])
def test_a_weight_is_followed_to_its_product(tmp_path, op):
    nodes = {
        "Transpose": [helper.make_node("Transpose", ["w"], ["v"], perm=[1, 0])],
        "Identity": [helper.make_node("Identity", ["w"], ["v"])],
        "Cast": [helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT)],
        "both": [helper.make_node("Identity", ["w"], ["u"]), helper.make_node("Transpose", ["u"], ["v"])],
    }[op]
    path = saved(tmp_path, [*nodes, helper.make_node("MatMul", ["x", "v"], ["y"])], {"w": W})
    assert open_checkpoint(path).module_kinds == {"w": "Linear" if op in ("Transpose", "both") else "MatMul"}


def test_weights_in_constant_nodes_and_in_branches(tmp_path):
    def branch(name, array):
        node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array))
        product = helper.make_node("MatMul", ["x", "c"], [f"{name}_y"], name=f"/{name}/fc/MatMul")
        return helper.make_graph([node, product], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("then", W), else_branch=branch("other", W + 1))
    path = saved(tmp_path, [node], {"shape": np.array([1, 2])}, (("c", None), ("x", None)))
    opened = open_checkpoint(path)
    values = [opened.read(name).numpy() for name, spec in opened.tensors.items() if len(spec.shape) == 2]
    assert sorted(float(value.sum()) for value in values) == sorted([float(W.sum()), float((W + 1).sum())])


def test_names_that_an_exporter_made_up_give_way_to_the_path_of_the_node(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name="/model/layers.0/self_attn/q_proj/MatMul")]
    audit = tw.audit(saved(tmp_path, nodes, {"onnx::MatMul_7": W}))
    assert [(layer.row.name, layer.row.role) for layer in audit] == [("model.layers.0.self_attn.q_proj", "attn_q")]


CODES = RNG.integers(-128, 128, size=(12, 16)).astype(np.int8)


@pytest.mark.parametrize(
    ("scale", "zero", "axis"),
    [
        (np.float32(0.1), np.int8(3), 1),
        (RNG.uniform(0.1, 1, 16).astype(np.float32), RNG.integers(-9, 9, 16).astype(np.int8), 1),
        (RNG.uniform(0.1, 1, 12).astype(np.float32), None, 0),
        (RNG.uniform(0.1, 1, 12).astype(np.float32), None, -2),
    ],
)
def test_codes_are_read_as_the_numbers_that_the_graph_computes_with(tmp_path, scale, zero, axis):
    arrays = {"w": CODES, "s": np.asarray(scale), **({} if zero is None else {"z": np.asarray(zero)})}
    inputs = ["w", "s", *([] if zero is None else ["z"])]
    decode = helper.make_node("DequantizeLinear", inputs, ["v"], axis=axis)
    path = saved(tmp_path, [decode, helper.make_node("MatMul", ["x", "v"], ["y"])], arrays, (("x", [12, 12]),))
    applied = ReferenceEvaluator(str(path)).run(None, {"x": np.eye(12, dtype=np.float32)})[0]
    opened = open_checkpoint(path)
    np.testing.assert_allclose(opened.read("w.weight").numpy(), applied, rtol=1e-5)
    layer = next(iter(tw.audit(path)))
    assert layer.row.dtype == "I8"
    assert layer.spectrum.eigenvalues.max() == pytest.approx(np.linalg.svd(applied.astype(float))[1][0] ** 2)


def test_blocks_of_four_bit_codes(tmp_path):
    codes = RNG.integers(-8, 8, size=(16, 12))
    scale = RNG.uniform(0.1, 1, size=(4, 12)).astype(np.float32)
    model = model_of(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"], axis=0, block_size=4),
            helper.make_node("MatMul", ["x", "v"], ["y"]),
        ],
        {"s": scale},
    )
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, codes.shape, codes.flatten().tolist()))
    onnx.save(model, tmp_path / "m.onnx")
    expected = codes * scale.repeat(4, axis=0)
    np.testing.assert_allclose(open_checkpoint(tmp_path / "m.onnx").read("w.weight").numpy(), expected, rtol=1e-6)


def test_codes_without_a_scale_are_refused(tmp_path):
    path = saved(tmp_path, [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], {"w": CODES})
    (row,) = tw.audit(path).rows
    assert (row.status, "scale" in row.reason) == ("UNSUPPORTED", True)
    arrays = {"w_quantized": CODES, "w_scale": np.float32(0.5), "w_zero_point": np.int8(2)}
    path = saved(tmp_path, [helper.make_node("MatMulInteger", ["x", "w_quantized"], ["y"])], arrays)
    np.testing.assert_allclose(open_checkpoint(path).read("w.weight").numpy(), (CODES.astype(float) - 2) * 0.5)


@pytest.mark.parametrize("location", ["model.data", "weights/model.data"])
def test_external_data_is_read_by_ranges(tmp_path, location):
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W, "v": W * 2})
    (tmp_path / "weights").mkdir()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    opened = open_checkpoint(tmp_path / "m.onnx")
    assert np.array_equal(opened.read("w.weight").numpy(), W)
    assert np.array_equal(opened.read_rows("v", 3, 7).numpy(), 2 * W[3:7])
    (tmp_path / location).write_bytes(b"short")
    with pytest.raises(UnreadableError, match="which has 5"):
        open_checkpoint(tmp_path / "m.onnx")


def outside(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (tmp_path / "secret").write_bytes(W.tobytes())
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "link", "sub/secret", ""]
)
def test_external_data_stays_in_its_folder(tmp_path, location):
    path = outside(tmp_path, location)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "sub").symlink_to(tmp_path)
    with pytest.raises(UnreadableError, match="outside the model's folder"):
        open_checkpoint(path)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0", tmp_path / "models--a--b/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "data").write_bytes(W.tobytes())
    (snapshot / "m.onnx").write_bytes(outside(tmp_path, "w.data").read_bytes())
    (snapshot / "w.data").symlink_to(blobs / "data")
    assert np.array_equal(open_checkpoint(snapshot / "m.onnx").read("w.weight").numpy(), W)


@pytest.mark.parametrize("keep", [2, 40, 300, -5])
def test_a_damaged_file_is_one_error(tmp_path, keep):
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableError):
        open_checkpoint(path)


@pytest.mark.parametrize("dims", [[12, -16], [1 << 40, 1 << 40], [12, 17]])
def test_shapes_that_lie(tmp_path, dims):
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnreadableError, match=r"cannot be|are there"):
        open_checkpoint(tmp_path / "m.onnx")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8, np.bool_, np.float32])
@pytest.mark.parametrize("typed", [True, False])
def test_every_field_that_holds_entries(tmp_path, dtype, typed):
    array = RNG.integers(0, 2, size=(4, 5)).astype(dtype)
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {"w": array})
    if typed:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.initializer[0].CopyFrom(helper.make_tensor("w", kind, array.shape, array.flatten().tolist()))
    onnx.save(model, tmp_path / "m.onnx")
    opened = open_checkpoint(tmp_path / "m.onnx")
    assert np.array_equal(opened.read("w").numpy(), array)
    assert opened.tensors["w"].nbytes == array.nbytes


def test_a_folder_and_an_address_afar(tmp_path):
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    fsspec.filesystem("memory").pipe_file("/onnx/model.onnx", path.read_bytes())
    for source in (tmp_path, path, "memory://onnx/model.onnx", "memory://onnx"):
        assert np.array_equal(open_checkpoint(source).read("w.weight").numpy(), W)


def test_other_processes_read_by_address(tmp_path):
    opened = open_checkpoint(saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W}))
    assert np.array_equal(opened.part(["w.weight"]).read("w.weight").numpy(), W)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UsageError, match=r"tailwise\[onnx\]"):
        open_checkpoint(path)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_packed_blocks_of_onnx_runtime(tmp_path, bits, zeros):
    """As its documentation of MatMulNBits has it: (code − zero) · scale by blocks of inputs, low bits first."""
    rows, cols, block = 24, 40, 16  # the last block is not full
    blocks, per_byte = 3, 8 // bits
    codes = RNG.integers(0, 1 << bits, size=(rows, blocks, block)).astype(np.uint8)
    scale = RNG.uniform(0.1, 1, size=(rows, blocks)).astype(np.float32)
    zero = RNG.integers(0, 1 << bits, size=(rows, blocks)).astype(np.uint8)

    def packed(values):
        padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per_byte)])
        parts = padded.reshape(*padded.shape[:-1], -1, per_byte).astype(np.uint16)
        return (parts << (np.arange(per_byte, dtype=np.uint16) * bits)).sum(-1).astype(np.uint8)

    arrays = {"fc.weight_Q4": packed(codes), "fc.weight_scales": scale.reshape(-1)}
    inputs = ["x", *arrays]
    if zeros != "none":
        arrays["fc.weight_zp"] = packed(zero).reshape(-1) if zeros == "packed" else zero.astype(np.float32)
        inputs.append("fc.weight_zp")
    options = {"N": rows, "K": cols, "bits": bits, "block_size": block, "domain": "com.microsoft"}
    node = helper.make_node("MatMulNBits", inputs, ["y"], name="/fc/MatMul_Q4", **options)
    opened = open_checkpoint(saved(tmp_path, [node], arrays))
    middle = (1 << (bits - 1)) if zeros == "none" else zero[..., None].astype(float)
    expected = ((codes.astype(float) - middle) * scale[..., None]).reshape(rows, -1)[:, :cols]
    assert opened.tensors.keys() == {"fc.weight"}
    np.testing.assert_allclose(opened.read("fc.weight").numpy(), expected, rtol=1e-5, atol=1e-6)
    (layer,) = tw.audit(tmp_path / "model.onnx")
    assert layer.row.name == "fc"
    assert layer.spectrum.eigenvalues.max() == pytest.approx(np.linalg.svd(expected)[1][0] ** 2, rel=1e-5)


def test_a_made_up_constant_that_nothing_multiplies_by_is_no_matrix(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "onnx::Add_9"], ["y"])]
    audit = tw.audit(saved(tmp_path, nodes, {"w": W, "onnx::Add_9": W}))
    assert [layer.row.name for layer in audit] == ["w"]
    (row,) = audit.unmeasured
    assert (row.status, "no product" in row.reason) == ("NOT_A_MATRIX", True)


@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize(("bits", "cols"), [(4, 64), (4, 48), (8, 64)])
def test_the_packed_table_of_onnx_runtime_is_read(tmp_path, bits, cols, with_zeros):
    rows, block = 24, 32
    blocks = -(-cols // block)
    codes, zeros = RNG.integers(0, 1 << bits, (rows, cols)), RNG.integers(0, 1 << bits, (rows, blocks))
    scales = RNG.uniform(0.01, 0.1, (rows, blocks)).astype(np.float32)

    def packed(values):
        return (values if bits == 8 else values[:, ::2] | values[:, 1::2] << 4).astype(np.uint8)

    arrays = {"model.embed_tokens.weight_Q4": packed(codes), "scales": scales}
    if with_zeros:
        arrays["zeros"] = packed(zeros)
    inputs = [next(iter(arrays)), "ids", *list(arrays)[1:]]
    options = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1, "domain": "com.microsoft"}
    node = helper.make_node("GatherBlockQuantized", inputs, ["y"], name="/model/embed_tokens/Gather", **options)
    checkpoint = open_checkpoint(saved(tmp_path, [node], arrays))
    (name,) = checkpoint.tensors
    zero = np.repeat(zeros, block, 1)[:, :cols] if with_zeros else 1 << (bits - 1)
    want = (codes - zero) * np.repeat(scales, block, 1)[:, :cols]
    assert (name, checkpoint.tensors[name].shape) == ("model.embed_tokens.weight", (rows, cols))
    assert checkpoint.module_kinds == {"model.embed_tokens": "Embedding"}
    np.testing.assert_allclose(checkpoint.read(name).numpy(), want, rtol=1e-5, atol=1e-6)


def test_a_table_of_int4_codes_is_read_with_zero_as_their_zero(tmp_path):
    codes, scales = RNG.integers(-8, 8, (24, 64)), RNG.uniform(0.01, 0.1, (24, 2)).astype(np.float32)
    node = helper.make_node("GatherBlockQuantized", ["table.weight", "ids", "scales"], ["y"], name="/table/Gather",
                            block_size=32, gather_axis=0, quantize_axis=1, domain="com.microsoft")  # fmt: skip
    model = model_of([node], {"scales": scales})
    model.graph.initializer.append(helper.make_tensor("table.weight", TensorProto.INT4, codes.shape, codes.flatten()))
    onnx.save(model, tmp_path / "model.onnx")
    found = open_checkpoint(tmp_path / "model.onnx").read("table.weight").numpy()
    np.testing.assert_allclose(found, codes * np.repeat(scales, 32, 1), rtol=1e-5)


def test_a_name_that_is_no_text_is_read_as_one(tmp_path):
    array = numpy_helper.from_array(np.ones((16, 12), np.float32), "weightname")
    node = helper.make_node("MatMul", ["x", "weightname"], ["y"], name="nodename")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    data = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [array])).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(b"weightname", b"weight\xff\xfeme").replace(b"nodename", b"node\xffame"))
    with open_checkpoint(path) as checkpoint:
        found, _ = group(checkpoint, conv="flatten", min_evals=4)
        assert all(isinstance(source.name, str) for source in found)
        "".join(checkpoint.tensors).encode()


def test_one_name_for_many_constants_takes_no_square_of_time(tmp_path):
    from tailwise.checkpoints.formats.onnx_graph import _Walk, names_of

    walk = _Walk()
    for _ in range(20_000):  # by the square: two hundred million steps
        walk.add("", None, "")
    assert len(dict(names_of(walk.found))) == 20_000


def test_inner_graphs_see_outer_names_without_a_copy_of_all_of_them():
    class NeverGoneThrough(ChainMap):
        def __iter__(self):
            raise AssertionError("a hundred thousand inner graphs times a hundred thousand names have no end")

    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "inner", [], [])
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, name="branch")], "g", [], [],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    walk = onnx_graph._Walk()
    walk.graph(outer, NeverGoneThrough(), "")
    assert walk.found["w"].kind == "MatMul"
