"""Keras and NumPy files: written by the libraries themselves, and measured as the layers compute."""

from __future__ import annotations

import io
import json
import zipfile

import fsspec
import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore:.*copy keyword:DeprecationWarning")  # Keras, of its own arrays
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def keras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        yield pytest.importorskip("keras")


@pytest.fixture(scope="module")
def model(keras):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    first = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, name="first")(first)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.SeparableConv2D(6, 3, name="separable")(x)
    x = layers.Conv2DTranspose(5, 3, name="up")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Reshape((-1, 5))(x)
    x = layers.MultiHeadAttention(2, 4, name="heads")(x, x)
    x = layers.LSTM(7, return_sequences=True)(x)
    x = layers.GRU(6, return_sequences=True, reset_after=False)(x)
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    made = keras.Model(first, layers.Dense(4, name="out")(x))
    made.compile("adam", "mse")
    return made


@pytest.fixture(scope="module", params=["m.keras", "m.h5", "m.weights.h5"])
def saved(request, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / request.param
    model.save_weights(path) if path.name == "m.weights.h5" else model.save(path)
    return path


def weights(model, layer, number=0):
    return np.asarray(model.get_layer(layer).weights[number].numpy())


def test_convolutions_have_the_outputs_first(saved, model):
    opened = open_checkpoint(saved)
    kernel = weights(model, "first")
    assert np.array_equal(opened.read("first.weight").numpy(), kernel.transpose(3, 2, 0, 1))
    depth = weights(model, "depth")  # (k, k, in, m)
    expected = depth.transpose(2, 3, 0, 1).reshape(16, 1, 3, 3)
    assert np.array_equal(opened.read("depth.weight").numpy(), expected)
    up = weights(model, "up")  # (k, k, out, in)
    assert np.array_equal(opened.read("up.weight").numpy(), up.transpose(3, 2, 0, 1))
    assert opened.module_kinds["up"] == "ConvTranspose2d"
    point = weights(model, "separable", 1)
    assert np.array_equal(opened.read("separable.pointwise.weight").numpy(), point.transpose(3, 2, 0, 1))


def test_a_turned_kernel_convolves_as_the_layer_does(saved, model):
    opened = open_checkpoint(saved)
    x = RNG.normal(size=(1, 12, 12, 3)).astype(np.float32)
    for name, function, width in (
        ("first", torch.nn.functional.conv2d, 3),
        ("up", torch.nn.functional.conv_transpose2d, 6),
    ):
        x = RNG.normal(size=(1, 9, 9, width)).astype(np.float32)
        ours = function(torch.from_numpy(x).permute(0, 3, 1, 2), opened.read(f"{name}.weight"))
        theirs = model.get_layer(name)(x).detach().permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dense_layers_and_heads_are_in_by_out(saved, model):
    opened = open_checkpoint(saved)
    assert np.array_equal(opened.read("out.weight").numpy(), weights(model, "out"))
    assert opened.module_kinds["out"] == "MatMul"
    heads = {
        name: opened.read(name).numpy() for name in opened.tensors if name.startswith("heads") and "weight" in name
    }
    shapes = {name.split(".")[1].removesuffix("_dense"): array.shape for name, array in heads.items()}
    assert shapes["query"] == shapes["key"] == shapes["value"] == (5, 8)
    query = next(array for name, array in heads.items() if "query" in name)
    assert np.array_equal(query, weights(model, "heads").reshape(5, 8))


def test_recurrent_gates_lie_as_pytorchs_do(saved, model):
    opened = open_checkpoint(saved)
    lstm = torch.nn.LSTM(5, 7, batch_first=True, bias=False)
    lstm.weight_ih_l0.data = opened.read("lstm.weight_ih_l0")
    lstm.weight_hh_l0.data = opened.read("lstm.weight_hh_l0")
    x = RNG.normal(size=(1, 4, 5)).astype(np.float32)
    layer = model.get_layer("lstm")
    bias = layer.cell.bias
    kept = bias.numpy()
    bias.assign(np.zeros_like(kept))
    torch.testing.assert_close(lstm(torch.from_numpy(x))[0].detach(), layer(x).detach(), rtol=1e-4, atol=1e-5)
    bias.assign(kept)
    gru = np.split(opened.read("gru.weight_ih_l0").numpy(), 3)  # reset, update, new
    update, reset, new = np.split(weights(model, "gru"), 3, axis=1)
    for ours, theirs in zip(gru, (reset, update, new), strict=True):
        assert np.array_equal(ours, theirs.T)


def test_the_optimizer_is_left_out_and_said(saved):
    opened = open_checkpoint(saved)
    assert not any("adam" in name or "optimizer" in name for name in opened.tensors)
    assert "optimizer" in opened.notes[0]


def test_an_audit_of_a_keras_file(saved, model):
    audit = tw.audit(saved, min_evals=3)
    kernel = weights(model, "first").transpose(3, 2, 0, 1).reshape(8, 27).astype(float)
    assert audit["first"].spectrum.eigenvalues.max() == pytest.approx(np.linalg.svd(kernel)[1][0] ** 2)
    assert audit["up"].row.rows == 5
    assert {"lstm.weight_ih_l0#i", "gru.weight_hh_l0#n", "out"} <= {layer.row.name for layer in audit}


def test_layers_of_a_model_of_ones_own(keras, tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(9), keras.layers.Dense(9)]
            self.embed = keras.layers.Embedding(11, 9)

        def call(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return x

    own = Own()
    own(np.zeros((1, 3), "int32"))
    own.save_weights(tmp_path / "own.weights.h5")
    opened = open_checkpoint(tmp_path / "own.weights.h5")
    assert {"blocks.dense.weight", "blocks.dense_1.weight", "embed.weight"} <= opened.tensors.keys()
    assert opened.module_kinds["embed"] == "Embedding"
    assert np.array_equal(opened.read("embed.weight").numpy(), own.embed.embeddings.numpy())


def old_file(path, arrays, **options):
    """As Keras 2 writes `save_weights`: a group for each layer, with `weight_names`."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = list(dict.fromkeys(name.split("/")[0] for name in arrays))
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
    return path


def test_transformers_tensorflow_file_has_the_names_of_pytorch(tmp_path):
    query, table = RNG.normal(size=(12, 16)).astype(np.float32), RNG.normal(size=(20, 12)).astype(np.float32)
    scope = "bert/tf_bert_for_masked_lm/bert"
    old_file(
        tmp_path / "tf_model.h5",
        {
            f"{scope}/encoder/layer_._3/attention/self/query/kernel:0": query,
            f"{scope}/embeddings/word_embeddings/weight:0": table,
            f"{scope}/embeddings/LayerNorm/gamma:0": np.ones(12, np.float32),
            "mlm___cls/tf_bert_for_masked_lm/mlm___cls/predictions/bias:0": np.ones(20, np.float32),
        },
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    audit = tw.audit(tmp_path)
    rows = {layer.row.name: layer.row for layer in audit}
    assert rows["bert.encoder.layer.3.attention.self.query"].role == "attn_q"
    assert rows["bert.encoder.layer.3.attention.self.query"].block == 3
    assert rows["bert.embeddings.word_embeddings"].role == "embed"
    assert "cls.predictions.bias" in {row.name for row in audit.unmeasured}


def test_old_convolutions_without_settings(tmp_path):
    kernel = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)
    path = old_file(tmp_path / "w.h5", {"block1_conv1/block1_conv1/kernel:0": kernel}, chunks=True, compression="gzip")
    opened = open_checkpoint(path)
    assert np.array_equal(opened.read("block1_conv1.weight").numpy(), kernel.transpose(3, 2, 0, 1))
    assert np.array_equal(
        opened.part(["block1_conv1.weight"]).read("block1_conv1.weight").numpy(), opened.read("block1_conv1.weight")
    )


def test_links_out_of_the_file_are_not_followed(tmp_path):
    secret = old_file(tmp_path / "secret.h5", {"a/kernel:0": np.ones((8, 8), np.float32)})
    path = old_file(tmp_path / "w.h5", {"d/d/kernel:0": np.eye(8, dtype=np.float32)})
    (tmp_path / "raw").write_bytes(np.ones((8, 8), np.float32).tobytes())
    layout = h5py.VirtualLayout((8, 8), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "a/kernel:0", (8, 8))
    with h5py.File(path, "a") as file:
        file["e"] = h5py.ExternalLink(str(secret), "/a")
        file["s"] = h5py.SoftLink("/d")
        file["d/loop"] = file["d"]
        file.create_virtual_dataset("v/kernel:0", layout)
        file.create_dataset("x/kernel:0", (8, 8), np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        file.create_dataset("n/kernel:0", (1 << 20, 1 << 20), np.float32, chunks=(64, 64))
    audit = tw.audit(path)
    assert [layer.row.name for layer in audit] == ["d"]
    refused = {row.name: row.reason for row in audit.unmeasured if row.status == "UNSUPPORTED"}
    assert refused.keys() == {"v.weight", "x.weight", "n.weight"}
    assert "not followed" in refused["v.weight"]
    assert "2 links" in audit.provenance.notes[0]


@pytest.mark.parametrize("keep", [10, 100, 900])
def test_damaged_files(tmp_path, keep):
    path = old_file(tmp_path / "w.h5", {"d/d/kernel:0": RNG.normal(size=(30, 30))})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableError, match=r"Keras file|no weights file"):
        open_checkpoint(path)


def test_an_archive_without_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(UnreadableError, match=r"no model\.weights\.h5"):
        open_checkpoint(tmp_path / "m.keras")


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    path = old_file(tmp_path / "w.h5", {"d/d/kernel:0": np.eye(8)})
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UsageError, match=r"tailwise\[keras\]"):
        open_checkpoint(path)


ARRAYS = {"a.weight": RNG.normal(size=(12, 16)), "b": RNG.normal(size=(16, 9)).astype(np.float32).T, "n": np.int64(3)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "m.npz", **ARRAYS)
    opened = open_checkpoint(tmp_path / "m.npz")
    assert opened.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(opened.read(name).numpy(), array)
        assert opened.tensors[name].nbytes == array.nbytes
    assert np.array_equal(opened.read_rows("b", 2, 5).numpy(), ARRAYS["b"][2:5])
    fsspec.filesystem("memory").pipe_file("/numpy/m.npz", (tmp_path / "m.npz").read_bytes())
    for source in (tmp_path, "memory://numpy/m.npz"):
        assert np.array_equal(open_checkpoint(source).read("a.weight").numpy(), ARRAYS["a.weight"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, order):
    array = np.asarray(RNG.normal(size=(12, 16)), order=order)
    np.save(tmp_path / "w.npy", array)
    opened = open_checkpoint(tmp_path / "w.npy")
    assert np.array_equal(opened.read("weight").numpy(), array)
    assert np.array_equal(opened.read_rows("weight", 3, 7).numpy(), array[3:7])


def test_names_of_flax_in_npz(tmp_path):
    kernel, patch = RNG.normal(size=(12, 16)), RNG.normal(size=(4, 4, 3, 12))
    names = {"Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel": kernel, "conv/kernel": patch}
    np.savez(tmp_path / "m.npz", **names)
    opened = open_checkpoint(tmp_path / "m.npz")
    assert np.array_equal(opened.read("conv.weight").numpy(), patch.transpose(3, 2, 0, 1))
    name = "Transformer.encoderblock.3.MlpBlock_3.Dense_0.weight"
    assert np.array_equal(opened.read(name).numpy(), kernel)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_objects_and_structures_are_refused_by_name_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    record = np.zeros(3, dtype=[("a", "f4"), ("b", "i4")])
    objects = np.array([Evil(mark)], dtype=object)
    np.savez(tmp_path / "m.npz", w=ARRAYS["a.weight"], record=record, objects=objects)
    reasons = {row.name: row.reason for row in tw.audit(tmp_path / "m.npz").unmeasured}
    assert "Python objects" in reasons["objects"]
    assert "entries of the type" in reasons["record"]
    np.save(tmp_path / "o.npy", objects)
    with pytest.raises(UnreadableError, match="holds no numbers: Python objects"):
        open_checkpoint(tmp_path / "o.npy")
    assert not mark.exists()


def npy(shape, data):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


@pytest.mark.parametrize("data", [npy((1 << 30, 1 << 20), b""), npy((4, 4), bytes(100)), b"\x93NUMPY\x01\x00\xff\xff"])
def test_headers_that_lie(tmp_path, data):
    (tmp_path / "w.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", data)
    for name in ("w.npy", "m.npz"):
        with pytest.raises(UnreadableError, match=r"does not take|not a whole NumPy file"):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_layers_that_flax_stacks_along_the_first_axis_are_layers(tmp_path, save):
    rng = np.random.default_rng(0)
    L, N, D, H, F = 3, 4, 16, 6, 40
    shapes = {
        "params/llm/layers/attn/q_einsum/w": (L, N, D, H),
        "params/llm/layers/attn/kv_einsum/w": (L, 2, 1, D, H),
        "params/llm/layers/attn/attn_vec_einsum/w": (L, N, H, D),
        "params/llm/layers/mlp/gating_einsum": (L, 2, D, F),
        "params/llm/layers/mlp/linear": (L, F, D),
        "params/llm/layers/pre_ffw_norm/scale": (L, D),
        "params/img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": (L, D, F),
        "params/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": (L, D, N, H),
        "params/img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": (L, F),
    }
    t = {name.split("/", 3)[-1]: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save(tmp_path / "m.npz", **{name: t[name.split("/", 3)[-1]] for name in shapes})
    checkpoint = open_checkpoint(tmp_path / "m.npz")
    by_layer = {
        "attn.q_proj": lambda i: t["attn/q_einsum/w"][i].transpose(1, 0, 2).reshape(D, N * H),
        "attn.k_proj": lambda i: t["attn/kv_einsum/w"][i, 0, 0],
        "attn.v_proj": lambda i: t["attn/kv_einsum/w"][i, 1, 0],
        "attn.o_proj": lambda i: t["attn/attn_vec_einsum/w"][i].reshape(N * H, D),
        "mlp.gate_proj": lambda i: t["mlp/gating_einsum"][i, 0],
        "mlp.up_proj": lambda i: t["mlp/gating_einsum"][i, 1],
        "mlp.down_proj": lambda i: t["mlp/linear"][i],
    }
    for layer in range(L):
        for name, of in by_layer.items():
            found = checkpoint.read(f"params.llm.layers.{layer}.{name}.weight").numpy()
            assert np.array_equal(found, of(layer))
        image = f"params.img.Transformer.encoderblock.{layer}."
        dense = checkpoint.read_rows(f"{image}MlpBlock_0.Dense_0.weight", 2, 5).numpy()
        assert np.array_equal(dense, t["encoderblock/MlpBlock_0/Dense_0/kernel"][layer, 2:5])
        query = checkpoint.read(f"{image}MultiHeadDotProductAttention_0.query.weight").numpy()
        assert np.array_equal(
            query, t["encoderblock/MultiHeadDotProductAttention_0/query/kernel"][layer].reshape(D, -1)
        )
    audit = tw.audit(tmp_path / "m.npz", use_cache=False, baseline_replicas=1, min_evals=4)
    roles = {row.name: (row.role, row.block, row.input_axis) for row in audit.rows}
    assert {role for name, (role, block, axis) in roles.items() if ".llm.layers.1." in name and "norm" not in name} == {
        "attn_q", "attn_k", "attn_v", "attn_o", "mlp_gate", "mlp_up", "mlp_down"
    }  # fmt: skip
    assert {axis for role, _, axis in roles.values() if role not in ("norm", "bias")} == {0}


def test_what_is_called_layers_and_is_no_stack_stays_one_matrix(tmp_path):
    arrays = {
        "layers/dense/kernel": np.ones((8, 6)),
        "layers/dense/bias": np.ones(6),
        "layers/0/kernel": np.ones((3, 4)),
    }
    np.savez(tmp_path / "m.npz", **arrays)
    shapes = {name: spec.shape for name, spec in open_checkpoint(tmp_path / "m.npz").tensors.items()}
    assert shapes == {"layers.dense.weight": (8, 6), "layers.dense.bias": (6,), "layers.0.weight": (3, 4)}
