"""Model folders with what no model needs: links out, links in circles, pipes, devices, halves of characters."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.checkpoints import bytesource
from tailwise.checkpoints.bytesource import LocalFile
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.within import check_within
from tailwise.checkpoints.writer import layout_of, write_checkpoint
from tailwise.core.errors import UnreadableError

SECRET = "root:x:0:0"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(20, 10)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret.txt"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def copy(model, target):
    target.mkdir()
    with open_checkpoint(model) as checkpoint:
        return write_checkpoint(layout_of(checkpoint, model), checkpoint, target, lambda _: None)


def test_a_link_in_a_circle_beside_a_model_is_skipped(model):
    (model / "loop.bin").symlink_to("loop.bin")
    for uri in (model, model / "model.safetensors"):
        with open_checkpoint(uri) as found:
            assert list(found.tensors) == ["w"]


def test_a_link_out_of_the_folder_is_not_copied(model, secret, tmp_path):
    (model / "x.txt").symlink_to(secret)
    (model / "templates").symlink_to(secret.parent)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "a.jinja").symlink_to(secret)
    (model / "additional_chat_templates" / "b.jinja").write_text("mine")
    (model / "mine.txt").write_text("mine")
    (model / "link.txt").symlink_to("mine.txt")
    notes = " ".join(copy(model, tmp_path / "copy"))
    found = {p.relative_to(tmp_path / "copy").as_posix(): p for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert {"mine.txt", "link.txt", "config.json", "additional_chat_templates/b.jinja"} <= found.keys()
    assert not any(SECRET.encode() in path.read_bytes() for path in found.values())
    assert "x.txt was left behind" in notes
    assert "a.jinja was left behind" in notes


def test_a_folder_of_templates_that_leads_out_is_not_copied(model, secret, tmp_path):
    (model / "additional_chat_templates").symlink_to(secret.parent)
    assert "outside" in " ".join(copy(model, tmp_path / "copy"))
    assert not (tmp_path / "copy" / "additional_chat_templates").exists()


@pytest.mark.parametrize("inner", ["", "inner"])
def test_files_of_the_hub_s_cache_are_copied(model, tmp_path, inner):
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc" / inner
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    with open_checkpoint(snapshot) as found:
        assert found.config == {"model_type": "llama"}
    copy(snapshot, tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == {"model_type": "llama"}


def test_a_folder_that_only_looks_like_the_hub_s_cache_lets_nothing_out(model, secret, tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.parent.mkdir()
    model.rename(snapshot)
    (tmp_path / "blobs").symlink_to(secret.parent)
    (snapshot / "x.txt").symlink_to(tmp_path / "blobs" / "secret.txt")
    copy(snapshot, tmp_path / "copy")
    assert not (tmp_path / "copy" / "x.txt").exists()


def test_a_config_that_would_be_missing_from_the_copy_is_told_before_the_work(model, secret, tmp_path):
    (model / "config.json").unlink()
    secret.write_text("{}")
    (model / "config.json").symlink_to(secret)
    with pytest.raises(UnreadableError, match="outside the model's folder"):
        copy(model, tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter_config.json"])
def test_settings_that_are_a_link_to_elsewhere_are_not_read(model, secret, name):
    secret.write_text(json.dumps({"token": SECRET}))
    if name == "adapter_config.json":
        (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(UnreadableError, match="outside the model's folder") as told:
        tw.audit(model, use_cache=False)
    assert SECRET not in str(told.value)
    assert "put a copy of it" in told.value.fix


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "params.json"])
def test_an_audit_has_nothing_of_a_file_elsewhere_that_lies_beside_a_file_of_weights(model, secret, name, tmp_path):
    secret.write_text(json.dumps({"token": SECRET}))
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    audit = tw.audit(model / "model.safetensors", use_cache=False)
    audit.save(f"{tmp_path}/x/")
    assert SECRET not in (tmp_path / "x" / "provenance.json").read_text()


def test_a_model_that_is_all_links_is_read(model, tmp_path):
    """As DVC and git-annex leave one, whose files lie by their content elsewhere."""
    save_file({"x": torch.ones(8, 6)}, model / "b.safetensors")
    (model / "model.safetensors").rename(model / "a.safetensors")
    weights = {"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "added_tokens.json").write_text('{"<x>": 5}')
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(cache / f"{number:032x}")
        path.symlink_to(cache / f"{number:032x}")
    with open_checkpoint(model) as found:
        assert found.config == {"model_type": "llama"}
        assert set(found.tensors) == {"w", "x"}
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "added_tokens.json"):
        check_within(model, model / name)


def test_links_to_weights_elsewhere_and_to_settings_in_the_folder_are_followed(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (model / "model.safetensors").rename(tmp_path / "disk" / "model.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "disk" / "model.safetensors")
    (model / "..data").mkdir()
    (model / "config.json").rename(model / "..data" / "config.json")
    (model / "config.json").symlink_to("..data/config.json")  # as Kubernetes mounts them
    (tmp_path / "link").symlink_to(model)
    for place in (model, tmp_path / "link"):
        with open_checkpoint(place) as found:
            assert found.config == {"model_type": "llama"}
            assert found.read("w").shape == (20, 10)


def test_a_pipe_beside_the_weights_is_left_behind(model, tmp_path):
    os.mkfifo(model / "pipe.txt")
    assert "it is no file" in " ".join(copy(model, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.gguf", "config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_told_at_once(model, name, kind):
    (model / name).unlink(missing_ok=True)
    if not name.startswith("config"):
        (model / "model.safetensors").unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(model / name)
    else:
        (model / name).symlink_to("/dev/zero")
    code = (
        "from tailwise.checkpoints.open import open_checkpoint\nfrom tailwise.core.errors import TailwiseError\n"
        f"try: open_checkpoint({str(model)!r})\nexcept TailwiseError as e: print(e.exit_code, e.what)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.startswith("3 is a ")
    assert "a file was expected" in done.stdout


def test_halves_of_characters_in_settings_become_what_can_be_written(model):
    (model / "config.json").write_text('{"model_type": "a\\ud800", "\\udfff": 1}')
    with open_checkpoint(model) as found:
        assert json.dumps(found.config, ensure_ascii=False).encode() == b'{"model_type": "a?", "?": 1}'


@pytest.mark.parametrize("make", ["pickle", "header"])
def test_a_tensor_whose_name_is_half_a_character_is_told_at_opening(model, make, tmp_path):
    name = "w\ud800"
    path = tmp_path / ("m.pt" if make == "pickle" else "m.safetensors")
    if make == "pickle":
        torch.save({name: torch.ones(3, 3)}, path)
    else:
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UnreadableError, match=r"Unicode|not whole|PyTorch"):
        open_checkpoint(path)


def test_a_file_is_read_by_ranges_where_the_system_has_no_preadv(model, tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)))
    expected = LocalFile(path).read(10, 100)
    monkeypatch.setattr(bytesource, "_read_at", bytesource._read_by_seeking)
    assert LocalFile(path).read(10, 100) == expected == bytes(range(10, 110))
    with pytest.raises(UnreadableError, match="ends at byte 256"):
        LocalFile(path).read(200, 100)


@pytest.mark.parametrize("name", ["layers." + "9" * 40_000 + ".weight", "blocks.1." * 50_000 + "weight"])
def test_a_name_that_no_tensor_has_is_told_before_it_is_looked_into(tmp_path, name):
    header = json.dumps({name: {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 1024]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1024))
    with pytest.raises(UnreadableError, match="characters") as caught:
        open_checkpoint(tmp_path / "m.safetensors")
    assert len(str(caught.value)) < 500
