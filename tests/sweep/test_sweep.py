"""A sweep end to end: what comes out, what is shared, what goes wrong, and who takes over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import update

import tailwise as tw
from inline import Inline
from loopback_hub import COMMIT
from tailwise.audits import work as audit_work
from tailwise.core.errors import UnreachableError, UsageError
from tailwise.history.sweep import one_model as work
from tailwise.history.sweep.catalogue import Catalogue
from tailwise.history.sweep.model_list import read_models
from tailwise.history.sweep.results import read_numbers, stem
from tailwise.history.sweep.sql_tables import MODELS
from tailwise.history.sweep.status import status_of
from tailwise.history.sweep.sweeping import Sweep, SweepListener, sweep


@pytest.fixture
def models(make) -> list[str]:
    """Three models; the first two share a matrix."""
    return [str(make("a", 1, shared=9)), str(make("b", 2, shared=9)), str(make("c", 3))]


def to(tmp_path, **more) -> Sweep:
    return Sweep.at("s", str(tmp_path / "out"), **more)


def test_three_models_become_audits_a_data_set_and_a_table_that_ranks(models, tmp_path):
    assert sweep(models, to(tmp_path)) == {"waiting": 0, "claimed": 0, "done": 3, "failed": 0}
    rows = pq.read_table(tmp_path / "out" / "layers").to_pylist()
    assert sorted({row["model"] for row in rows}) == sorted(models)
    assert len(rows) == 9
    for model in models:
        audit = tw.Audit.load(tmp_path / "out" / "audits" / f"{stem(model)}.audit")
        assert audit.model == model
        alphas = {row["name"]: row["alpha"] for row in rows if row["model"] == model}
        assert alphas == {layer.row.name: layer.row.metrics["alpha"] for layer in audit}
    table = pq.read_table(tmp_path / "out" / "models.parquet").to_pylist()
    assert [(row["model"], row["status"], row["matrices"]) for row in table] == [(model, "done", 3) for model in models]
    numbers = read_numbers(str(tmp_path / "out"))
    assert [one.values["mean_alpha"] for one in numbers] == [tw.audit(model).summary()["alpha"] for model in models]


def test_a_matrix_that_models_share_is_solved_once_and_counted(models, tmp_path):
    sweep(models, to(tmp_path))
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        status = status_of(catalogue, "s", price=3600.0)
        seconds = catalogue.totals("s")["core_seconds"]
    assert (status.matrices, status.reused) == (9, 1)
    assert status.dollars == pytest.approx(seconds)
    assert json.loads(json.dumps(status.to_json()))["total"] == 3
    rows = pq.read_table(tmp_path / "out" / "layers").to_pylist()
    assert len({row["digest"] for row in rows}) == sum(not row["reused"] for row in rows) == 8


def test_the_same_sweep_again_does_nothing_twice_and_takes_what_is_new(models, tmp_path):
    seen = []
    sweep(models[:2], to(tmp_path), watch=SweepListener(ended=seen.append))
    sweep(models, to(tmp_path), watch=SweepListener(ended=seen.append))
    assert [outcome.model for outcome in seen] == models


def test_a_bad_model_is_a_line_with_a_remedy_and_stops_nothing(models, tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    bad = [str(tmp_path / "nothing" / "here"), str(tmp_path / "torn"), "s3://"]
    assert sweep([*bad, *models], to(tmp_path))["failed"] == 3
    table = {row["model"]: row for row in pq.read_table(tmp_path / "out" / "models.parquet").to_pylist()}
    assert len(table) == 6
    assert table[bad[0]]["reason"] == "no such file or folder"
    assert "check the path" in table[bad[0]]["remedy"]
    assert all(table[model]["reason"] for model in bad)
    assert [row["status"] for row in table.values()] == ["failed"] * 3 + ["done"] * 3


def test_an_error_that_nobody_foresaw_is_a_line_too(models, tmp_path, monkeypatch):
    audit = work.audit

    def breaking(model, **settings):
        if model == models[0]:
            raise RecursionError("too deep")
        if model == models[1]:
            raise MemoryError
        return audit(model, **settings)

    monkeypatch.setattr(work, "audit", breaking)
    assert sweep(models, to(tmp_path)) == {"waiting": 0, "claimed": 0, "done": 1, "failed": 2}
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        reasons = [entry.reason for entry in catalogue.troubles("s")]
        assert reasons == ["RecursionError: too deep", "out of memory"]
        assert catalogue.retry("s") == 2
    monkeypatch.setattr(work, "audit", audit)
    assert sweep(models, to(tmp_path))["done"] == 3


def test_a_store_that_does_not_answer_at_first_is_asked_again(models, tmp_path, monkeypatch):
    audit, failures, seen = work.audit, iter([1]), []

    def shy(model, **settings):
        if model == models[0] and next(failures, None):
            raise UnreachableError("no answer", fix="wait")
        return audit(model, **settings)

    monkeypatch.setattr(work, "audit", shy)
    monkeypatch.setattr(work, "AGAIN_IN", 0.0)
    assert sweep(models, to(tmp_path), watch=SweepListener(ended=seen.append))["done"] == 3
    assert [outcome.became for outcome in seen] == ["waiting", "done", "done", "done"]


def test_matrices_that_could_not_be_read_are_said_and_can_be_retried(models, tmp_path, monkeypatch):
    load = audit_work.load

    def torn(source, checkpoint):
        if source.name.endswith("gate_proj"):
            raise tw.UnreadableError("the connection broke off")
        return load(source, checkpoint)

    monkeypatch.setattr(audit_work, "load", torn)
    assert sweep(models, to(tmp_path))["done"] == 3
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        troubles = status_of(catalogue, "s").troubles
        assert len(troubles) == 3
        assert "1 matrices could not be read" in troubles[0].reason
        catalogue.retry("s")
    monkeypatch.setattr(audit_work, "load", load)
    sweep(models, to(tmp_path))
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        assert status_of(catalogue, "s").troubles == ()


def test_an_interrupted_sweep_gives_its_model_back(models, tmp_path, monkeypatch):
    def interrupted(model, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "audit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(models, to(tmp_path))
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        assert catalogue.counts("s") == {"waiting": 3, "claimed": 0, "done": 0, "failed": 0}
    assert sweep(models, to(tmp_path))["done"] == 3


def test_other_settings_are_another_sweep(models, tmp_path):
    sweep(models, to(tmp_path))
    with pytest.raises(UsageError, match="other settings"):
        sweep(models, to(tmp_path), estimator="top")
    with pytest.raises(UsageError, match="no estimator named"):
        sweep(models, to(tmp_path), estimator="topp")
    with pytest.raises(UsageError, match="cannot lie in an object store"):
        Sweep.at("s", "s3://bucket/out")


def test_models_on_s3_and_an_engine_give_the_data_set_of_threads_and_paths(s3, models, tmp_path):
    there = []
    for model in map(Path, models):
        for file in model.iterdir():
            s3.pipe_file(f"bucket/models [1]/{model.name}+é/{file.name}", file.read_bytes())
        there.append(f"s3://bucket/models [1]/{model.name}+é")
    sweep(models, to(tmp_path))
    far = Sweep.at("far", "s3://bucket/far", str(tmp_path / "far.db"))
    wires = Inline()
    counts = sweep(there, far, executor=wires, workers=2, cache_dir="s3://bucket/far-cache")
    assert counts == {"waiting": 0, "claimed": 0, "done": 3, "failed": 0}
    one = pq.read_table(tmp_path / "out" / "layers").drop_columns(["model", "seconds"])
    other = pq.read_table("bucket/far/layers", filesystem=s3).drop_columns(["model", "seconds"])
    order = [("name", "ascending"), ("digest", "ascending")]
    assert one.sort_by(order).drop_columns(["reused"]) == other.sort_by(order).drop_columns(["reused"])
    sent = len(wires.sent)
    assert sent > 0
    again = Sweep.at("again", "s3://bucket/far-again", str(tmp_path / "far.db"))
    sweep(there, again, executor=wires, workers=2, cache_dir="s3://bucket/far-cache")
    assert len(wires.sent) == sent


def test_an_engine_decides_about_devices_and_an_unknown_one_is_a_wrong_use(models, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is no executor"):
        sweep(models, to(tmp_path), executor="spark")
    with pytest.raises(UsageError, match="no CUDA device"):
        sweep(models, to(tmp_path), device="cuda")
    counts = sweep(models[:1], to(tmp_path), device="cuda", executor=Inline(), workers=1)
    assert counts["done"] == 1
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        [trouble] = catalogue.troubles("s")
    assert "no CUDA device" in trouble.reason


def test_results_on_s3(s3, models, tmp_path):
    where = Sweep.at("s", "s3://bucket/sweep/", str(tmp_path / "c.db"))
    sweep(models, where, cache_dir="s3://bucket/sweep-cache")
    assert len(s3.ls("bucket/sweep/audits")) == len(s3.ls("bucket/sweep/layers")) == 3
    assert len(read_numbers("s3://bucket/sweep")) == 3
    assert pq.read_table("bucket/sweep/layers", filesystem=s3).num_rows == 9
    again = Sweep.at("again", "s3://bucket/again", str(tmp_path / "c.db"))
    sweep(models, again, cache_dir="s3://bucket/sweep-cache")
    with Catalogue(tmp_path / "c.db") as catalogue:
        assert status_of(catalogue, "again").reused == 9


def test_a_query_of_a_hub_is_swept_and_copies_are_not_even_downloaded(hub, make, tmp_path):
    files = {file.name: file.read_bytes() for file in make("a").iterdir()}
    hub.publish(files, repo="org/a")
    hub.publish(files, repo="org/copy")
    hub.server.api["/api/models"] = [{"id": "org/a"}, {"id": "org/copy"}, {"id": "org/gone"}]
    counts = sweep(read_models("hub:author=org"), to(tmp_path))
    assert (counts["done"], counts["failed"]) == (2, 1)
    size = len(files["model.safetensors"])
    served = sum(count for _, count in hub.server.served("/org/copy/resolve/" + COMMIT + "/model.safetensors"))
    assert served < size / 4  # its header
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        done, copy, gone = catalogue.entries("s")
        assert (done.facts["reused"], copy.facts["reused"], copy.facts["bytes_read"]) == (0, 3, 0)
        assert "404" in gone.reason
        assert done.facts["revision"] == COMMIT


def test_parts_have_the_same_columns_where_nothing_was_measured(models, tmp_path, make):
    (tmp_path / "tiny").mkdir()
    tiny = str(tmp_path / "tiny" / "model.safetensors")
    save_file({"norm.weight": torch.ones(5)}, tiny)
    counts = sweep([tiny, *models], to(tmp_path))
    assert (counts["done"], counts["failed"]) == (3, 1)  # a model without a matrix has no part
    assert pq.read_table(tmp_path / "out" / "layers").num_rows == 9


WORKER = """
import sys
from tailwise.history.sweep.sweeping import Sweep, SweepListener, sweep
models, catalogue, folder = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
def begun(claim):
    print("began", claim.model, flush=True)
    if sys.argv[4] == "hang":
        sys.stdin.readline()
def ended(outcome):
    print("ended", outcome.model, outcome.became, flush=True)
sweep(models, Sweep("s", folder, catalogue, lease=float(sys.argv[5])), watch=SweepListener(begun, ended))
"""


def start(models, catalogue, folder, how="go", lease=60.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, ",".join(models), catalogue, str(folder), how, str(lease)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_workers_share_a_sweep_and_do_nothing_twice(make, tmp_path, where):
    models = [str(make(f"m{index}", index, shared=99)) for index in range(6)]
    workers = [start(models, where, tmp_path / "out") for _ in range(2)]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert all(worker.returncode == 0 for worker in workers)
    assert sorted(line for line in lines if line.startswith("ended")) == sorted(f"ended {m} done" for m in models)
    rows = pq.read_table(tmp_path / "out" / "layers").to_pylist()
    assert len({row["digest"] for row in rows}) == sum(not row["reused"] for row in rows) == 13


def test_a_killed_workers_model_is_finished_by_another(models, tmp_path, postgres):
    # Its lease is short; nothing extends it before the audit begins.
    where = postgres.new_store()
    victim = start(models, where, tmp_path / "out", "hang", 0.2)
    assert victim.stdout.readline() == f"began {models[0]}\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    seen: list = []
    counts = sweep(models, Sweep("s", str(tmp_path / "out"), where), watch=SweepListener(ended=seen.append))
    assert counts == {"waiting": 0, "claimed": 0, "done": 3, "failed": 0}
    assert sorted(outcome.model for outcome in seen) == sorted(models)


def test_a_worker_that_lost_its_lease_says_so_and_counts_nothing(models, tmp_path, monkeypatch):
    audit, stolen, seen = work.audit, [], []

    def slow(model, **settings):
        if not stolen:
            stolen.append(model)
            with Catalogue(tmp_path / "out" / "catalogue.db") as other, other._engine.begin() as connection:
                connection.execute(update(MODELS).where(MODELS.c.model == model).values(owner="thief", until=0.0))
        return audit(model, **settings)

    monkeypatch.setattr(work, "audit", slow)
    assert sweep(models[:1], to(tmp_path), watch=SweepListener(ended=seen.append))["done"] == 1
    assert [outcome.became for outcome in seen] == ["lost", "done"]


def test_what_could_not_be_measured_is_counted_and_shown(make, tmp_path):
    from safetensors.torch import load_file, save_file

    sick = make("sick", 1)
    tensors = load_file(sick / "model.safetensors")
    tensors["layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, sick / "model.safetensors")
    assert sweep([str(make("sound", 2)), str(sick)], to(tmp_path))["failed"] == 0
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        (trouble,) = status_of(catalogue, "s").troubles
    assert "1 matrix has NaN or infinite entries, the first: layers.0.mlp.up_proj" in trouble.reason
    from tailwise.history.sweep.results import read_numbers
    from tailwise.judging.compare.ranking import rank_numbers

    ranking = rank_numbers(read_numbers(str(tmp_path / "out")), by="log_norm")
    assert {model.name: model.values["unmeasured"] for model in ranking.models} == {"sound": 0.0, "sick": 1.0}
    assert any("could not be measured and are in no number: sick 1" in note for note in ranking.notes)


def test_a_model_without_a_matrix_has_failed(tmp_path):
    import torch
    from safetensors.torch import save_file

    empty = tmp_path / "empty"
    empty.mkdir()
    save_file({"bias": torch.zeros(8)}, empty / "model.safetensors")
    counts = sweep([str(empty)], to(tmp_path))
    assert (counts["done"], counts["failed"]) == (0, 1)
    with Catalogue(tmp_path / "out" / "catalogue.db") as catalogue:
        assert "no weight matrix could be measured" in status_of(catalogue, "s").troubles[0].reason


def test_remedies_stand_in_one_line():
    from tailwise.core.errors import UsageError
    from tailwise.history.sweep.one_model import explained

    what, fix = explained(UsageError("two\n  lines", fix="do this\n  or that"))
    assert (what, fix) == ("two lines", "do this or that")
