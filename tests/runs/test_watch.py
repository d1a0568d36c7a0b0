"""Watching: whole checkpoints only, each once, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil

import fsspec
import pytest
import torch
from runs_helpers import UP, Q, stop_after
from safetensors.torch import save_file

from tailwise.audits.audit import Audit
from tailwise.core.errors import UnreachableError, UsageError
from tailwise.history.as_audit import audit_at
from tailwise.history.runs.found import find
from tailwise.history.runs.sink import Sink, audit_all
from tailwise.history.runs.watch import RunWatch, follow, once
from tailwise.history.schema import AUDITS
from tailwise.history.store import History


@pytest.fixture
def store(tmp_path):
    with History(tmp_path / "history.db") as history:
        yield history


def watch(folder, store, **options) -> RunWatch:
    return RunWatch(str(folder), Sink("run", store, None), clock=lambda: 1e12, **options)


def steps(outcomes) -> list[int]:
    return [outcome.found.step for outcome in outcomes if outcome.audit is not None]


def test_each_checkpoint_is_audited_once(make_run, store):
    folder = make_run((1, 2))
    watched = watch(folder, store)
    assert steps(watched.round()) == [1, 2]
    assert steps(watched.round()) == []
    shutil.copytree(folder / "step-2", folder / "step-3")
    assert steps(watch(folder, store).round()) == [3]  # another process goes on
    assert [item.step for item in store.audits("run")] == [1, 2, 3]


@pytest.mark.parametrize("odd", ["checkpoint-1-old", "epoch-3", "checkpoint-2-v1"])
def test_an_odd_name_is_a_note_and_the_watch_goes_on(make_run, store, odd):
    folder = make_run((1, 2), name="checkpoint-{}")
    shutil.copytree(folder / "checkpoint-1", folder / odd)
    watched = watch(folder, store)
    assert steps(watched.round()) == [1, 2]
    assert [text.partition(" ")[0] for text in watched.odd] == [odd]
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-7")
    said = []
    stop = stop_after(3)
    with pytest.raises(InterruptedError):
        list(follow(watched, 0.0, sleep=lambda seconds: stop(), trouble=said.append))
    assert [item.step for item in store.audits("run")] == [1, 2, 7]
    assert len(said) == 1  # once, however often it is looked


def test_a_file_that_is_cut_short_waits_until_it_is_whole(make_run, store):
    folder = make_run((1,))
    file = folder / "step-1" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    watched = watch(folder, store)
    assert steps(watched.round()) == []
    assert "step-1" in watched.waiting
    file.write_bytes(whole)
    assert steps(watched.round()) == [1]
    assert watched.waiting == {}


@pytest.mark.parametrize("lacking", ["model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_shards_wait_for_their_index_and_for_each_other(tmp_path, store, lacking):
    place, names = tmp_path / "run" / "step-1", {}
    place.mkdir(parents=True)
    for number, name in enumerate((Q, UP), 1):
        names[f"{name}.weight"] = f"model-0000{number}-of-00002.safetensors"
        save_file({f"{name}.weight": torch.randn(64, 64)}, place / f"model-0000{number}-of-00002.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    shutil.move(place / lacking, tmp_path / "aside")
    watched = watch(tmp_path / "run", store)
    assert steps(watched.round()) == []
    assert "step-1" in watched.waiting
    shutil.move(tmp_path / "aside", place / lacking)
    assert steps(watched.round()) == [1]


def test_a_file_that_is_being_written_beside_it(make_run, store):
    folder = make_run((1,))
    (folder / "step-1" / "optimizer.pt.tmp").write_bytes(b"")
    watched = watch(folder, store)
    assert steps(watched.round()) == []
    assert watched.waiting == {"step-1": "optimizer.pt.tmp is still being written"}


def test_half_a_pickle_waits(tmp_path, store):
    folder = tmp_path / "pickles"
    folder.mkdir()
    torch.save({"w": torch.randn(64, 64)}, folder / "step-1.pt")
    whole = (folder / "step-1.pt").read_bytes()
    (folder / "step-1.pt").write_bytes(whole[: len(whole) // 2])
    watched = watch(folder, store)
    assert steps(watched.round()) == []
    (folder / "step-1.pt").write_bytes(whole)
    assert steps(watched.round()) == [1]


def test_what_changed_just_now_waits_a_round(make_run, store):
    folder = make_run((1,))
    os.utime(folder / "step-1" / "model.safetensors", (1000.0, 1000.0))
    os.utime(folder / "step-1" / "config.json", (1000.0, 1000.0))
    watched = RunWatch(str(folder), Sink("run", store, None), settle=10.0, clock=lambda: 1004.0)
    assert steps(watched.round()) == []
    assert watched.waiting == {"step-1": "it changed 4 s ago"}
    os.utime(folder / "step-1" / "model.safetensors", (1003.0, 1003.0))
    assert steps(watched.round()) == []
    assert steps(watched.round()) == [1]


def test_once_waits_for_what_changed_just_now(make_run, store):
    waited = []
    watched = RunWatch(str(make_run((1,))), Sink("run", store, None), settle=5.0, clock=lambda: 0.0)
    assert steps(once(watched, waited.append)) == [1]
    assert waited == [5.0]


def test_following_goes_on_while_the_place_is_away(make_run, store, tmp_path):
    folder, said = make_run((1,)), []
    away = tmp_path / "away"

    def sleep(_):
        count = stopping()
        if count in (1, 2):  # gone for two rounds
            shutil.move(folder, away) if count == 1 else None
        elif count == 3:
            shutil.move(away, folder)
            shutil.copytree(folder / "step-1", folder / "step-2")

    stopping = stop_after(5)
    outcomes = follow(watch(folder, store), 1.0, sleep, said.append)
    with pytest.raises(InterruptedError):
        list(outcomes)
    assert len(said) == 1
    assert "no such file or folder" in said[0]
    assert [item.step for item in store.audits("run")] == [1, 2]


def test_following_says_once_what_a_checkpoint_lacks(make_run, store):
    folder, said, stopping = make_run((1,)), [], stop_after(3)
    (folder / "step-1" / "x.tmp").write_text("")
    with pytest.raises(InterruptedError):
        list(follow(watch(folder, store), 1.0, lambda _: stopping(), said.append))
    assert said == ["step-1 waits: x.tmp is still being written"]


def test_a_checkpoint_that_cannot_be_measured_is_tried_again_only_when_it_changes(make_run, store, monkeypatch):
    from tailwise.history.runs import sink

    folder, calls = make_run((1,)), []

    def failing(uri, **_):
        calls.append(uri)
        raise UnreachableError("is away", where=uri)

    monkeypatch.setattr(sink, "audit", failing)
    watched = watch(folder, store)
    assert next(watched.round()).trouble.endswith("is away")
    assert list(watched.round()) == []
    (folder / "step-1" / "new.txt").write_text("")
    assert len(list(watched.round())) == 1
    assert len(calls) == 2


def test_an_audit_that_the_store_cannot_take_is_tried_again(make_run, store, monkeypatch):
    folder = make_run((1,))
    watched = watch(folder, store)
    real = History.add_audit

    def away(*_, **__):
        raise UnreachableError("the server is away")

    monkeypatch.setattr(History, "add_audit", away)
    (outcome,) = watched.round()
    assert "could not be kept" in outcome.trouble
    monkeypatch.setattr(History, "add_audit", real)
    (outcome,) = watched.round()
    assert not outcome.trouble
    assert outcome.audit.provenance.reused == 2


def test_audits_go_into_a_folder_and_the_store_knows_their_files(make_run, store, tmp_path):
    sink = Sink("run", store, tmp_path / "audits")
    outcomes = list(audit_all(find(make_run((1, 2))), sink))
    assert [outcome.path.name for outcome in outcomes] == ["step-000001.audit", "step-000002.audit"]
    assert store.audits("run")[0].path == str(tmp_path / "audits" / "step-000001.audit")
    assert len(Audit.load(outcomes[0].path)) == 2
    again = list(audit_all(find(tmp_path / "run"), sink))
    assert [outcome.known for outcome in again] == [True, True]
    outcomes[0].path.unlink()
    assert [outcome.known for outcome in audit_all(find(tmp_path / "run"), sink)] == [False, True]


def test_one_unreadable_checkpoint_does_not_stop_the_others(make_run, store):
    folder = make_run((1, 2, 3))
    (folder / "step-2" / "model.safetensors").write_bytes(b"nonsense")
    outcomes = list(audit_all(find(folder), Sink("run", store, None)))
    assert steps(outcomes) == [1, 3]
    assert outcomes[1].trouble


def test_wrong_settings_stop_at_once(make_run, store):
    with pytest.raises(UsageError, match="no estimator"):
        list(audit_all(find(make_run((1,))), Sink("run", store, None, {"estimator": "nonsense"})))
    with pytest.raises(UsageError, match="nowhere to go"):
        Sink("run", None, None)


def test_checkpoints_behind_a_url_are_watched(make_run, store):
    memory = fsspec.filesystem("memory")
    memory.put(str(make_run((5,))), "/watched/run", recursive=True)
    try:
        watched = watch("memory://watched/run", store)
        assert steps(watched.round()) == [5]
    finally:
        memory.rm("/watched", recursive=True)


def several(folder, seeds, width=64):
    """A checkpoint a step, each of its own weights."""
    for step, seed in seeds.items():
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        save_file({f"{UP}.weight": torch.randn(96, width, generator=generator)}, place / "model.safetensors")
    return folder


@pytest.mark.parametrize("other", [{"seeds": {10: 8, 20: 9}}, {"seeds": {20: 2}, "width": 80}])
@pytest.mark.parametrize("kept", ["store", "folder"])
def test_another_run_of_the_same_name_is_refused_and_not_taken_for_known(tmp_path, store, other, kept):
    """Many runs keep their checkpoints in a folder called `checkpoints`."""

    def sink():
        return Sink("checkpoints", store if kept == "store" else None, None if kept == "store" else tmp_path / "audits")

    one, two = several(tmp_path / "a", {10: 1, 20: 2}), several(tmp_path / "b", **other)
    assert len(list(audit_all(find(one), sink()))) == 2
    with pytest.raises(UsageError, match=r"give run with|with run"):
        list(audit_all(find(two), sink()))
    with pytest.raises(UsageError, match=r"give run with|with run"):
        list(once(RunWatch(str(two), sink(), settle=0.0), lambda _: None))


def test_files_of_another_run_are_not_written_over(tmp_path, store):
    one, two = several(tmp_path / "a", {10: 1}), several(tmp_path / "b", {10: 2})
    list(audit_all(find(one), Sink("a", store, tmp_path / "audits")))
    with pytest.raises(UsageError, match="-o with a folder of its own"):
        list(audit_all(find(two), Sink("b", store, tmp_path / "audits")))


def test_a_file_that_is_of_other_weights_now_is_not_taken_for_the_audit(tmp_path, store):
    one, two = several(tmp_path / "a", {10: 1}), several(tmp_path / "b", {10: 2})
    (outcome,) = audit_all(find(one), Sink("a", store, tmp_path / "audits"))
    assert audit_at(store, "a", 10)[1] == ""
    (other,) = audit_all(find(two), Sink("b", None, tmp_path / "others"))
    other.path.replace(outcome.path)
    found, lacks = audit_at(store, "a", 10)
    assert "other weights" in lacks
    assert found.rows[0].metrics["alpha"] == pytest.approx(outcome.audit.rows[0].metrics["alpha"])


def test_a_run_that_moved_and_goes_on_is_known_by_its_content(tmp_path, store):
    one = several(tmp_path / "a", {10: 1, 20: 2})
    list(audit_all(find(one), Sink("checkpoints", store, None)))
    two = one.rename(tmp_path / "elsewhere")
    shutil.rmtree(two / "checkpoint-10")  # as trainers that keep the last few do
    several(two, {30: 3})
    assert [outcome.known for outcome in audit_all(find(two), Sink("checkpoints", store, None))] == [True, False]


def test_a_link_to_a_checkpoint_that_has_gone_keeps_no_other_waiting(tmp_path, store):
    """As `latest` is, in the folder of a trainer that keeps the last few."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_file({f"{UP}.weight": torch.randn(96, 64)}, folder / "step-2.safetensors")
    for name in ("latest", "step-1.safetensors"):
        (folder / name).symlink_to(folder / "step-0.safetensors")
    watched = watch(folder, store)
    assert steps(watched.round()) == [2]
    assert watched.waiting == {"step-1.safetensors": "it is not there any more"}


def test_a_checkpoint_that_has_gone_is_not_looked_for_on_the_hub(tmp_path, store, monkeypatch):
    several(tmp_path / "run", {10: 1})
    monkeypatch.chdir(tmp_path)
    (found,) = find("run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    outcome = Sink("run", store, None).take(found)
    assert "no such file or folder" in outcome.trouble


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:{}/x.audit", "s3://bucket/x.audit", "\\\\host\\x.audit", "//host/x"]
)
def test_an_address_that_a_store_names_is_asked_for_nothing(tmp_path, store, server, place):
    (outcome,) = audit_all(find(several(tmp_path / "a", {10: 1})), Sink("a", store, tmp_path / "audits"))
    address = place.format(server.url.rpartition(":")[2])
    with store._engine.begin() as connection:
        connection.execute(AUDITS.update().values(path=address))
    found, lacks = audit_at(store, "a", 10)
    assert "asked for nothing" in lacks
    assert address in lacks
    assert found.rows[0].metrics["alpha"] == pytest.approx(outcome.audit.rows[0].metrics["alpha"])
    assert not server.seen
