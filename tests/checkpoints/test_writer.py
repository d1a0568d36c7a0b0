"""Checkpoints written back: same files, same bytes, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailwise.checkpoints import draft as drafts
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import layout_of, write_checkpoint
from tailwise.core.errors import UnreadableError, UsageError


@pytest.fixture
def source(tmp_path):
    """Two shards with an index, of several dtypes, and what lies beside them."""
    folder = tmp_path / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    one = {"a.weight": torch.randn(6, 4, generator=generator).bfloat16(), "steps": torch.tensor(7)}
    other = {"b.weight": torch.randn(300, 70, generator=generator), "b.mask": torch.tensor([True, False, True]),
             "empty": torch.empty(0, 5), "c.weight": torch.randn(3, 5, generator=generator).half()}  # fmt: skip
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, tensors in zip(names, (one, other), strict=True):
        save_file(tensors, folder / name, metadata={"format": "pt", "by": "me"})
    weight_map = dict.fromkeys(one, names[0]) | dict.fromkeys(other, names[1])
    index = {"metadata": {"total_size": 1, "extra": "kept"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(b"\x00tokens")
    (folder / "README.md").write_text("the card of the source")
    return folder


def copied(source, target, change=lambda _: None):
    target.mkdir(exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        return write_checkpoint(layout_of(checkpoint, source), checkpoint, target, change)


def test_a_copy_has_the_bytes_of_the_source(source, tmp_path):
    copied(source, tmp_path / "copy")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        before, after = load_file(source / name), load_file(tmp_path / "copy" / name)
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_metadata_and_index_are_kept(source, tmp_path):
    copied(source, tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    before = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["extra"] == "kept"
    with open_checkpoint(tmp_path / "copy") as copy:
        assert dict(copy.metadata) == {"format": "pt", "by": "me"}


def test_settings_are_copied_and_the_card_is_not(source, tmp_path):
    copied(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == b"\x00tokens"
    assert not (tmp_path / "copy" / "README.md").exists()


def test_chat_templates_are_copied_and_other_folders_noted(source, tmp_path):
    for name, file in (("additional_chat_templates", "tool.jinja"), ("onnx", "model.onnx"), (".cache", "x")):
        (source / name).mkdir()
        (source / name / file).write_text("text")
    notes = copied(source, tmp_path / "copy")
    assert (tmp_path / "copy" / "additional_chat_templates" / "tool.jinja").read_text() == "text"
    assert notes == ("folders were left behind: onnx",)


def test_the_layers_that_sentence_transformers_keeps_in_folders_are_copied(source, tmp_path):
    for name in ("1_Pooling", "2_Dense", "onnx"):
        (source / name).mkdir()
        (source / name / "config.json").write_text("{}")
    (source / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    listed = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}]
    (source / "modules.json").write_text(json.dumps(listed))
    assert copied(source, tmp_path / "copy") == ("folders were left behind: onnx",)
    assert (tmp_path / "copy" / "1_Pooling" / "config.json").read_text() == "{}"
    assert (tmp_path / "copy" / "2_Dense" / "model.safetensors").read_bytes() == b"weights"


def test_the_record_of_another_model_s_recovery_is_not_copied(source, tmp_path):
    (source / "tailwise_recovery.json").write_text("{}")
    copied(source, tmp_path / "copy")
    assert not (tmp_path / "copy" / "tailwise_recovery.json").exists()


def test_only_what_changes_is_other(source, tmp_path):
    copied(source, tmp_path / "copy", lambda name: torch.zeros(300, 70) if name == "b.weight" else None)
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "copy") as after:
        assert not after.read("b.weight").any()
        assert all(torch.equal(before.read(n), after.read(n)) for n in before.tensors if n != "b.weight")


@pytest.mark.parametrize("wrong", [torch.zeros(300, 71), torch.zeros(300, 70).double()])
def test_a_change_of_shape_or_dtype_is_an_error(source, tmp_path, wrong):
    with pytest.raises(UsageError, match=r"b.weight would become"):
        copied(source, tmp_path / "copy", lambda name: wrong if name == "b.weight" else None)


def test_a_file_of_pytorch_becomes_safetensors(tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    torch.save({"a.weight": weight, "tied.weight": weight, "n": torch.tensor(3)}, folder / "pytorch_model.bin")
    copied(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["model.safetensors"]
    assert torch.equal(load_file(tmp_path / "copy" / "model.safetensors")["a.weight"], weight)


def test_what_cannot_be_written_back_is_an_error():
    with open_checkpoint({"a": torch.ones(2, 2)}) as checkpoint, pytest.raises(UsageError, match="format memory"):
        layout_of(checkpoint, "x")


def test_a_large_file_stays_behind_with_a_note(source, tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.checkpoints.copied_settings._SMALL", 4)
    notes = copied(source, tmp_path / "copy")
    assert any("tokenizer.json was left behind" in note for note in notes)


# Drafts


def test_a_draft_appears_only_when_it_is_committed(tmp_path):
    target = tmp_path / "out"
    with Draft(target) as draft:
        (draft.folder / "file").write_text("x")
        assert not target.exists()
        draft.commit()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def broken_by(error, target, **how):
    with Draft(target, **how) as draft:
        (draft.folder / "half").write_text("x")
        if how:
            (draft.kept / "block").write_text("done")
        raise error


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="broken"):
        broken_by(ValueError("broken"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_error_that_leaves_nothing(tmp_path):
    with pytest.raises(UnreadableError, match="No space left"):
        broken_by(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleaned_by_the_next(tmp_path):
    left = tmp_path / ".out.tailwise"
    left.mkdir()
    (left / "half").write_text("x")
    with Draft(tmp_path / "out") as draft:
        assert not (draft.folder / "half").exists()


@pytest.mark.parametrize(("key", "resume", "there"), [("k", True, True), ("other", True, False), ("k", False, False)])
def test_finished_work_outlives_an_error_for_the_same_key(tmp_path, key, resume, there):
    with pytest.raises(KeyboardInterrupt):
        broken_by(KeyboardInterrupt(), tmp_path / "out", key="k")
    with Draft(tmp_path / "out", key=key, resume=resume) as draft:
        assert (draft.kept / "block").exists() is there
        assert not (draft.folder / "half").exists()


def test_two_runs_cannot_write_one_output(tmp_path):
    with Draft(tmp_path / "out"), pytest.raises(UsageError, match="another run"), Draft(tmp_path / "out"):
        pass


def test_a_lock_that_another_run_has_removed_is_none(tmp_path, monkeypatch):
    real = fcntl.flock

    def ended(file, how):
        (tmp_path / ".out.tailwise-lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", ended)
    with pytest.raises(UsageError, match="another run"), Draft(tmp_path / "out"):
        pass


def test_an_output_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with Draft(tmp_path / "out") as draft:
        (draft.folder / "new").write_text("x")
        draft.commit()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_two_renames_gives_the_old_output_back(tmp_path):
    old = tmp_path / ".out.tailwise-old"
    old.mkdir()
    (old / "model").write_text("x")
    with pytest.raises(ValueError, match="broken"), Draft(tmp_path / "out"):
        raise ValueError("broken")
    assert (tmp_path / "out" / "model").exists()


def test_an_output_that_is_there_takes_force(source):
    with pytest.raises(UsageError, match="is there already"):
        check_output(source, force=False)
    check_output(source, force=True)


def test_force_replaces_models_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="other things than a model"):
        check_output(tmp_path, force=True)


def test_a_model_is_never_written_over_itself(source):
    for output, how in ((source, "is"), (source.parent, "holds")):
        with pytest.raises(UsageError, match=f"{how} the model that is read"):
            check_output(output, force=True, source=source)


def test_a_disk_without_room_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(UsageError, match="the disk has"):
        check_space(tmp_path / "deep" / "out", 11)
