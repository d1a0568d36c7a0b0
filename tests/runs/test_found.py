"""Names to steps, and where checkpoints are looked for."""

from __future__ import annotations

import shutil

import fsspec
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.history.runs.found import find, step_of
from tailwise.history.runs.sink import run_name


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-100", 100), ("step_0", 0), ("checkpoint-500", 500), ("global_step1000", 1000), ("iter_0001200", 1200),
        ("epoch-3", 3), ("epoch=3-step=900.ckpt", 900), ("step1000", 1000), ("stage1-step140000-tokens294B", 140000),
        ("ckpt_12.pt", 12), ("model.step-7.safetensors", 7), ("Step-5", 5), ("llama-checkpoint-20", 20),
        ("tmp-checkpoint-500", None), (".step-100", None), ("step-100.tmp", None),
        ("step-100.safetensors.incomplete", None),
        ("ckpt-10k", 10_000), ("step-1e3", 1000), ("ckpt_10_000", 10_000), ("step-1.5M", 1_500_000),
        ("step_1,000", 1000),
        ("step-1.5k.ckpt", 1500), ("checkpoint-3b", 3_000_000_000), ("step-1e4.safetensors", 10_000), ("step-5.0", 5),
        ("step-10k-tokens3B", 10_000), ("step-0.0001k", None), ("step-1e300", None),
        ("step-99999999999999999999", None),
        (f"step-{2**63 - 1}", 2**63 - 1), ("epoch=1-step=100-v1.ckpt", 100),
        ("final", None), ("main", None), ("llama-7b", None), ("footstep-2", None), ("step-", None), ("", None),
    ],
)  # fmt: skip
def test_the_step_in_a_name(name, step):
    assert step_of(name) == step


def test_checkpoints_are_found_in_order_of_step(make_run):
    folder = make_run((9, 100, 20), name="checkpoint-{}")
    (folder / "runs").mkdir()
    (folder / "trainer_state.json").write_text("{}")
    assert [one.step for one in find(folder)] == [9, 20, 100]
    assert find(folder)[0].uri == f"{folder}/checkpoint-9"


def test_files_are_checkpoints_too(make_run, tmp_path):
    folder = make_run((5,))
    shutil.move(folder / "step-5" / "model.safetensors", tmp_path / "run" / "step_7.safetensors")
    shutil.rmtree(folder / "step-5")
    (folder / "step_8-00001-of-00002.safetensors").write_bytes(b"")
    assert [(one.step, one.name) for one in find(folder)] == [(7, "step_7.safetensors")]


def test_one_folder_deeper_is_looked_into_where_only_one_has_checkpoints(make_run, tmp_path):
    make_run((5,))
    outer = tmp_path / "outer"
    shutil.move(tmp_path / "run", outer / "a")
    (outer / "logs").mkdir()
    assert [one.uri for one in find(outer)] == [f"{outer}/a/step-5"]
    shutil.copytree(outer / "a", outer / "b")
    with pytest.raises(UsageError, match=r"several runs: a, b[\s\S]*give one of them"):
        find(outer)


def test_two_names_of_one_step(make_run):
    folder = make_run((5,))
    shutil.copytree(folder / "step-5", folder / "checkpoint-5")
    with pytest.raises(UsageError, match="are both step 5"):
        find(folder)


@pytest.mark.parametrize("other", ["checkpoint-5-old", "checkpoint-5-v1", "step-5", "checkpoint-5.bak"])
def test_a_second_name_of_a_step_is_noted_where_notes_are_taken(make_run, other):
    folder = make_run((5, 10), name="checkpoint-{}")
    shutil.copytree(folder / "checkpoint-5", folder / other)
    odd = []
    found = find(folder, odd=odd)
    assert [one.step for one in found] == [5, 10]
    (said,) = odd
    assert "is left out: it is step 5 too" in said
    assert other == "step-5" or said.startswith(other)


def test_epochs_and_steps_are_no_one_row(make_run):
    folder = make_run((100, 200))
    shutil.copytree(folder / "step-100", folder / "epoch-1")
    with pytest.raises(UsageError, match=r"epoch-1 counts epochs and step-\d00 counts steps"):
        find(folder)
    odd = []
    assert [one.step for one in find(folder, odd=odd)] == [100, 200]
    assert odd[0].startswith("epoch-1 is left out")


def test_epochs_alone_are_a_row(make_run):
    assert [one.step for one in find(make_run((1, 2), name="epoch-{}"))] == [1, 2]


def test_a_place_without_checkpoints_and_one_that_is_none(tmp_path):
    assert find(tmp_path) == []
    with pytest.raises(UnreadableError, match="no such file or folder"):
        find(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        find(tmp_path / "file")
    with pytest.raises(UsageError, match="only models on the Hugging Face Hub have revisions"):
        find(tmp_path, ["step1"])


def test_checkpoints_behind_a_url(make_run):
    folder = make_run((5, 50))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/found/run", recursive=True)
    try:
        assert [(one.step, one.uri) for one in find("memory://found/run")] == [
            (5, "memory://found/run/step-5"), (50, "memory://found/run/step-50"),
        ]  # fmt: skip
    finally:
        memory.rm("/found", recursive=True)


def test_names_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_name("out/llama/") == "llama"
    assert run_name(".") == tmp_path.name
    assert run_name("s3://bucket/llama") == "llama"
    assert run_name("org/llama") == "org/llama"


def told(folder, name, file, text):
    """A checkpoint whose name tells no step."""
    shutil.copytree(folder / "step-5", folder / name)
    (folder / name / file).write_text(text)


@pytest.mark.parametrize(("file", "key"), [("trainer_state.json", "global_step"), ("training.json", "step")])
def test_the_step_beside_the_weights_counts_where_the_name_has_none(make_run, file, key):
    folder = make_run((5,))
    told(folder, "early", file, f'{{"{key}": 3}}')
    told(folder, "last", file, f'{{"{key}": 40}}')
    assert [(one.step, one.name) for one in find(folder)] == [(3, "early"), (5, "step-5"), (40, "last")]
    shutil.rmtree(folder / "step-5")
    assert [one.step for one in find(folder)] == [3, 40]


def test_a_copy_of_a_checkpoint_and_what_tells_no_step_are_left_out(make_run):
    folder = make_run((5, 9))
    told(folder, "best", "trainer_state.json", '{"global_step": 5}')
    for name, text in (
        ("torn", '{"global_st'),
        ("text", '{"global_step": "7"}'),
        ("none", "{}"),
        ("yes", '{"global_step": true}'),
    ):
        told(folder, name, "trainer_state.json", text)
    (folder / "logs").mkdir()
    (folder / "logs" / "training.json").write_text('{"step": 8}')
    assert [one.name for one in find(folder)] == ["step-5", "step-9"]


def test_a_trainers_state_above_its_checkpoints_makes_no_checkpoint_of_their_folder(make_run, tmp_path):
    folder = make_run((5, 9))
    shutil.copy(folder / "step-9" / "model.safetensors", folder)
    (folder / "trainer_state.json").write_text('{"global_step": 9}')
    assert [one.step for one in find(tmp_path)] == [5, 9]
