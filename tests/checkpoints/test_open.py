"""What a path can be: folders, shards, copies, adapters, training runs, and everything that is not a model."""

from __future__ import annotations

import json
import os
import pickle
import subprocess

import pytest
import torch
from safetensors.torch import save, save_file

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

W = torch.arange(6.0).reshape(3, 2)


def shards(folder, stem="model", *, count=3, index=True):
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for i, name in enumerate(names):
        save_file({f"w{i}": W + i}, folder / name)
    if index:
        weight_map = {f"w{i}": name for i, name in enumerate(names)}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return [folder / name for name in names]


def test_importing_needs_no_torch(python):
    code = "import sys, tailwise.checkpoints.open; print(bool({'torch', 'huggingface_hub', 'fsspec'} & {*sys.modules}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_folder_prefers_safetensors_and_reads_config(tmp_path):
    save_file({"safe": W}, tmp_path / "model.safetensors")
    torch.save({"pickle": W}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for source in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.tensors.keys() == {"safe"}
        assert checkpoint.config == {"model_type": "llama"}
        assert checkpoint.uri == str(source)


def test_a_folder_of_pickles_leaves_the_trainers_files_out(tmp_path):
    torch.save({"w": W}, tmp_path / "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        torch.save({"x": W}, tmp_path / name)
    assert open_checkpoint(tmp_path).tensors.keys() == {"w"}


def test_sharded_pickles(tmp_path):
    weight_map = {}
    for i in (1, 2):
        name = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({f"w{i}": W}, tmp_path / name)
        weight_map[f"w{i}"] = name
    assert open_checkpoint(tmp_path).tensors.keys() == {"w1", "w2"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).tensors.keys() == {"w1", "w2"}
    assert open_checkpoint(tmp_path / "pytorch_model.bin.index.json").tensors.keys() == {"w1", "w2"}


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards_are_all_named(tmp_path, index):
    first, second, third = shards(tmp_path, index=index)
    assert open_checkpoint(tmp_path).read("w2").equal(W + 2)
    first.unlink()
    second.unlink()
    with pytest.raises(UnreadableError, match="2 of the shards") as caught:
        open_checkpoint(tmp_path)
    assert first.name in str(caught.value)
    assert second.name in str(caught.value)
    assert third.name not in str(caught.value)


def test_diffusers_names_and_variants(tmp_path):
    save_file({"w": W}, tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({"w": W.half()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert open_checkpoint(tmp_path).tensors["w"].dtype == "F32"
    assert open_checkpoint(tmp_path / "diffusion_pytorch_model.fp16.safetensors").tensors["w"].dtype == "F16"


def test_a_diffusers_pipeline_names_its_models(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet").mkdir()
    with pytest.raises(UsageError, match="pipeline of several models: unet"):
        open_checkpoint(tmp_path)


def test_numbered_files_without_an_index_are_one_model(tmp_path):
    for number in (0, 1, 10):
        save_file({f"w{number}": W}, tmp_path / f"part_{number}.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == {"w0", "w1", "w10"}


@pytest.mark.parametrize("names", [("style_a", "style_b"), ("unet", "vae"), ("vision", "text", "x-00001")])
def test_unrelated_files_are_not_one_model(tmp_path, names):
    for name in names:
        save_file({name: W}, tmp_path / f"{name}.safetensors")
    listed = ", ".join(f"{name}.safetensors" for name in sorted(names))
    with pytest.raises(UsageError, match=f"several models: {listed}"):
        open_checkpoint(tmp_path)


def test_files_beside_the_model_are_said(tmp_path):
    save_file({"w": W}, tmp_path / "model.safetensors")
    save_file({"v": W}, tmp_path / "style.safetensors")
    save_file({"w": W.half()}, tmp_path / "model.fp16.safetensors")
    opened = open_checkpoint(tmp_path)
    assert opened.tensors.keys() == {"w"}
    assert opened.notes == ("not read, for the model is in other files: style.safetensors",)


@pytest.mark.parametrize("index", [True, False])
def test_a_file_that_the_shards_do_not_name_is_said(tmp_path, index):
    shards(tmp_path, index=index)
    save_file({"extra": W}, tmp_path / "extra.safetensors")
    opened = open_checkpoint(tmp_path)
    assert opened.tensors.keys() == {"w0", "w1", "w2"}
    assert "extra.safetensors" in opened.notes[0]


def test_complex_and_meta_tensors_are_called_so(tmp_path):
    torch.save({"c": torch.ones(9, 9, dtype=torch.complex64), "m": torch.ones(9, 9, device="meta")}, tmp_path / "m.pt")
    rows = {row.name: row for row in tw.audit(tmp_path / "m.pt").rows}
    assert (rows["c"].status, "complex numbers" in rows["c"].reason) == ("UNSUPPORTED", True)
    assert (rows["m"].status, "meta device" in rows["m"].reason) == ("UNREADABLE", True)


def test_the_publishers_second_copy_is_left_out(tmp_path):
    shards(tmp_path, index=False)
    save_file({"w0": W}, tmp_path / "consolidated.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == {"w0", "w1", "w2"}


def test_the_same_tensor_in_two_files(tmp_path):
    save_file({"a": W}, tmp_path / "part1.safetensors")
    save_file({"a": W}, tmp_path / "part2.safetensors")
    with pytest.raises(UnreadableError, match=r"a is in two files: .*part1.*part2"):
        open_checkpoint(tmp_path)


def test_several_quantizations_ask_which(tmp_path):
    for name in ("m-Q4.gguf", "m-Q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"several models: m-Q4.gguf, m-Q8.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON list"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
    ],
)
def test_a_malformed_index(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnreadableError, match=message):
        open_checkpoint(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    save_file({"w": W}, tmp_path / "secret.safetensors")
    (tmp_path / "m").mkdir()
    index = {"weight_map": {"w": "../secret.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableError, match="are missing"):
        open_checkpoint(tmp_path / "m")


def test_an_index_that_promises_more_is_logged(tmp_path, caplog):
    shards(tmp_path, count=1)
    index = {"weight_map": {"w0": "model-00001-of-00001.safetensors", "gone": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    open_checkpoint(tmp_path)
    assert "1 tensors of the index are in no file: gone" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_malformed_config(tmp_path, text, caplog):
    save_file({"w": W}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UnreadableError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "model.safetensors").config == {}
    assert "config.json is left out" in caplog.text


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(UnreadableError, match=r"is an empty folder: looked for \*\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "README.md").touch()
    (tmp_path / "weights").mkdir()
    with pytest.raises(UnreadableError, match=r"holds no weights.*the folders weights"):
        open_checkpoint(tmp_path)


def test_a_training_run_names_its_checkpoints(tmp_path):
    for step in (100, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(UsageError, match="checkpoint-100, checkpoint-200"):
        open_checkpoint(tmp_path)


CONTENTS = {
    "empty": (b"", "is an empty file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "html": (b"<!doctype html><html>", "web page"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "gzip": (b"\x1f\x8b" + bytes(50), "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "zstd"),
    "tar": (b"a" + bytes(256) + b"ustar\x00" + bytes(300), "tar archive"),
    "tflite": (bytes([28, 0, 0, 0]) + b"TFL3" + bytes(50), "TensorFlow Lite|claims a header"),
    "openvino": (b"<?xml version='1.0'?><net/>", "OpenVINO"),
    "savedmodel": (b"\x08\x01\x12\x90" + bytes(50), "no weights file"),
    "text": (b"hello world, I am text", "no weights file that tailwise knows"),
    "zeros": (bytes(100), "no weights file|claims a header|not valid JSON"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "gguf", "pt", "xyz"])
@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_files_that_are_no_weights(tmp_path, content, message, suffix):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        open_checkpoint(path)
    assert any(part in str(caught.value) for part in [*message.split("|"), "claims a header"])
    assert caught.value.fix


NAMED = {
    "flax_model.msgpack": "msgpack_restore",
    "model.nemo": "model_weights.ckpt",
    "model.joblib": "savez",
    "saved_model.pb": "keras",
    "model.engine": "ONNX",
    "model.mlmodel": "converted from",
    "model.tflite": "converted from",
}


@pytest.mark.parametrize("name", NAMED)
def test_files_of_other_programs_are_named_with_the_way_out(tmp_path, name):
    tar = bytes(257) + b"ustar\x00" + bytes(300)
    (tmp_path / name).write_bytes(tar if name.endswith(".nemo") else b"\x84\xa6params" + bytes(60))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(UnreadableError) as caught:
            open_checkpoint(source)
        assert NAMED[name] in str(caught.value.fix)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["_METADATA", "manifest.ocdbt", "d/"], "Orbax"),
        (["_CHECKPOINT_METADATA", "default/"], "Orbax"),
        (["saved_model.pb", "variables/"], "SavedModel"),
        (["model.ckpt.index", "model.ckpt.data-00000-of-00001", "checkpoint"], "checkpoint of TensorFlow"),
        (["openvino_model.xml", "openvino_model.bin"], "OpenVINO"),
        (["Manifest.json", "Data/"], "Core ML"),
    ],
)
def test_folders_of_other_programs_are_named_with_the_way_out(tmp_path, names, what):
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UnreadableError, match=what) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.fix


OWN = {
    "plan.json": (b'{\n "tailwise_plan": 1}', "is a plan of tailwise", "tailwise apply"),
    "plan.yaml": (b"tailwise_plan: 1\n", "is a plan of tailwise", "tailwise apply"),
    "gates.toml": (b"# Made by `tailwise check --init` from m.\n", "list of expectations", "--expect"),
    "study.json": (b'{"kind": "precision study"}', "study of number formats", "the model itself"),
    "runs.db": (b"SQLite format 3\0" + bytes(80), "database", "tailwise history"),
    "layers.parquet": (b"PAR1" + bytes(80), "Parquet", "the model itself"),
}


@pytest.mark.parametrize("name", OWN)
def test_files_that_tailwise_wrote_are_named_with_what_reads_them(tmp_path, name):
    data, what, way = OWN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableError, match=what) as caught:
        open_checkpoint(tmp_path / name)
    assert way in str(caught.value.fix)


@pytest.mark.parametrize("name", ["x.audit", "x.bin", "folder/"])
def test_an_audit_is_named_and_not_called_a_damaged_model(tmp_path, name):
    import tailwise as tw

    audit = tw.audit({"w": torch.eye(9)}, use_cache=False)
    (tmp_path / "folder").mkdir()
    audit.save(tmp_path / name)
    with pytest.raises(UnreadableError, match="is an audit that tailwise has made") as caught:
        open_checkpoint(tmp_path / name)
    assert "diagnose" in str(caught.value.fix)


def test_a_folder_of_a_study_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UnreadableError, match="study of number formats"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", ["bin", "pt", "gguf", "dat"])
def test_a_wrong_suffix_does_not_matter(tmp_path, suffix):
    (tmp_path / f"m.{suffix}").write_bytes(save({"w": W}))
    assert open_checkpoint(tmp_path / f"m.{suffix}").format == "safetensors"
    torch.save({"w": W}, tmp_path / "m.safetensors")
    assert open_checkpoint(tmp_path / "m.safetensors").read("w").equal(W)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "a/b/c", "./org/name", "org/model.safetensors", "gpt2", ""])
def test_nothing_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableError, match="no such file or folder"):
        open_checkpoint(name)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_names_that_cannot_be(name):
    with pytest.raises(UnreadableError):
        open_checkpoint(name)


def test_permission_denied(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"w": W}))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything, so pretend
        monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UnreadableError, match=r"permission denied[\s\S]*chmod"):
        open_checkpoint(path)


def test_a_dangling_link(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UnreadableError, match="no such file"):
            open_checkpoint(source)


def test_no_tensors(tmp_path):
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(UnreadableError, match="holds no tensors"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_identity_follows_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": W, "b": W + 1}, path)
    first = open_checkpoint(path)
    assert first.identity("a") != first.identity("b")
    assert first.identity("a") == open_checkpoint(tmp_path).identity("a")
    os.utime(path, ns=(1, 1))
    assert open_checkpoint(path).identity("a") != first.identity("a")


def test_another_process_reads_the_same_file(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": W}, path)
    sent = pickle.dumps(open_checkpoint(path))
    assert pickle.loads(sent).read("a").equal(W)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UnreadableError, match="has changed since"):
        pickle.loads(sent)


def test_a_revision_is_only_the_hubs(tmp_path):
    save_file({"a": W}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="have a revision"):
        open_checkpoint(tmp_path / "m.safetensors", revision="main")


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.layer.lora"
    save_file(
        {f"{prefix}_A.weight": torch.randn(2, 8), f"{prefix}_B.weight": torch.randn(6, 2)},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.fixture
def peft(monkeypatch):
    """Records what the adapter's own format is opened with."""
    module = pytest.importorskip("tailwise.checkpoints.formats.peft")
    calls = []
    monkeypatch.setattr(module.PeftCheckpoint, "open", lambda *args: calls.append(args) or "opened")
    return calls


def test_an_adapter(adapter, peft, tmp_path):
    assert open_checkpoint(adapter) == "opened"
    weights, settings, base, mode = peft[0]
    assert (weights.format, settings["r"], base, mode) == ("safetensors", 2, None, "delta")
    open_checkpoint(adapter / "adapter_model.safetensors")
    assert peft[1][3] == "delta"


def test_an_adapter_on_its_base(adapter, peft, tmp_path):
    save_file({"layer.weight": torch.randn(6, 8)}, tmp_path / "base.safetensors")
    open_checkpoint(adapter, base=str(tmp_path / "base.safetensors"), adapter_mode="merged")
    assert peft[0][2].tensors.keys() == {"layer.weight"}
    assert peft[0][3] == "merged"


def named(adapter, base):
    """Let the adapter say that it adapts `base`."""
    place = adapter / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": base}))


def test_a_merged_adapter_takes_the_base_that_it_names(adapter, tmp_path):
    (tmp_path / "base").mkdir()
    weight = torch.randn(6, 8)
    save_file({"layer.weight": weight}, tmp_path / "base" / "model.safetensors")
    named(adapter, str(tmp_path / "base"))
    with open_checkpoint(adapter, adapter_mode="merged") as opened:
        assert not torch.equal(opened.read("layer.weight").float(), weight)
        assert (opened.adapter_mode, opened.base_uri) == ("merged", str(tmp_path / "base"))
        assert opened.notes == (f"an adapter, merged into {tmp_path / 'base'}",)


@pytest.mark.parametrize(("base", "said"), [("/gone/base", "no folder here"), (None, "does not say which model")])
def test_a_merged_adapter_that_names_no_base(adapter, base, said):
    named(adapter, base)
    with pytest.raises(UsageError, match=said) as raised:
        open_checkpoint(adapter, adapter_mode="merged")
    assert "base" in str(raised.value.fix)


def test_adapters_that_cannot_be(adapter, tmp_path):
    with pytest.raises(UsageError, match="adapter_mode is"):
        open_checkpoint(adapter, adapter_mode="other")
    save_file({"a": W}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="this is no adapter"):
        open_checkpoint(tmp_path / "m.safetensors", base="org/base")


def test_layers_of_sentence_transformers_in_folders_of_their_own_are_named_in_a_note(tmp_path):
    save_file({"encoder.layer.0.attention.self.query.weight": torch.ones(8, 8)}, tmp_path / "model.safetensors")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense"):
        (tmp_path / name).mkdir()
    save_file({"linear.weight": torch.ones(6, 8)}, tmp_path / "2_Dense" / "model.safetensors")
    (note,) = open_checkpoint(tmp_path).notes
    assert note == "not read, for it lies in a folder of its own: 2_Dense (modules.json)"
    assert open_checkpoint(tmp_path / "2_Dense").tensors.keys() == {"linear.weight"}
    for text in ("{", "[1]", '{"path": "2_Dense"}'):
        (tmp_path / "modules.json").write_text(text)
        assert open_checkpoint(tmp_path).notes == ()


def overlaid(folder, homes):
    """Two shards and an overlay that both tensors of the first are in, too; `homes`: what the index says."""
    weight = torch.arange(256.0).reshape(16, 16)
    for number, name in enumerate(("model-00001-of-00002", "model-00002-of-00002", "model-overlay")):
        tensors = {"a.weight": weight * (number + 1)} if number != 1 else {"b.weight": weight.clone()}
        save_file(tensors, folder / f"{name}.safetensors")
    weight_map = {name: f"{home}.safetensors" for name, home in homes.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(("home", "times"), [("model-overlay", 3.0), ("model-00001-of-00002", 1.0)])
def test_the_index_says_which_of_two_copies_is_the_model_s(tmp_path, home, times):
    homes = {"a.weight": home, "b.weight": "model-00002-of-00002", "c.weight": "model-overlay",
             "d.weight": "model-00001-of-00002"}  # fmt: skip
    opened = open_checkpoint(overlaid(tmp_path, homes))
    assert opened.read("a.weight")[0, 1] == times
    assert any("other copies of 1 tensors (a.weight)" in note for note in opened.notes)


def test_two_copies_of_which_the_index_says_nothing_are_told(tmp_path):
    homes = {"b.weight": "model-00002-of-00002", "c.weight": "model-overlay", "d.weight": "model-00001-of-00002"}
    with pytest.raises(UnreadableError, match=r"a\.weight is in two files"):
        open_checkpoint(overlaid(tmp_path, homes))
    with pytest.raises(UnreadableError, match=r"a\.weight is in two files"):
        open_checkpoint(overlaid(tmp_path, {**homes, "a.weight": "model-00002-of-00002"}))


@pytest.mark.parametrize("text", ['{"time_step_limit": [0.0, Infinity], "x": NaN, "y": 1e999}', "\ufeff{}"])
def test_settings_that_are_hardly_json_are_read_and_the_audit_can_be_loaded(tmp_path, text):
    save_file({"a.weight": torch.rand(16, 16, generator=torch.manual_seed(0))}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    saved = tw.audit(tmp_path, use_cache=False).save(tmp_path / "m.audit")
    assert len(tw.Audit.load(saved)) == 1
