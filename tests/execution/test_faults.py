"""Workers killed, stopped and cut off, schedulers restarted: every matrix ends measured or marked, and none twice."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from threading import Timer

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from clusters import QUIET, Cluster
from stores import Apart, serving
from tailwise.core.execution.spread import Patience, SpreadWork, spread

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]
COUNT = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """24 matrices in two shards."""
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(1)
    tensors = {f"layers.{i}.mlp.up_proj.weight": torch.randn(300 + i, 400, generator=generator) for i in range(COUNT)}
    for place, file in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
        save_file({name: tensors[name] for name in list(tensors)[place::2]}, folder / file)
    return folder


@pytest.fixture(scope="module")
def expected(model):
    return tw.audit(model, use_cache=False)


@pytest.fixture(scope="module")
def shared():
    pytest.importorskip("distributed", reason="needs tailwise[dask]")
    with Cluster(workers=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared):
    shared.heal()
    return shared


class At:
    """Does something once, when so many matrices have come back."""

    def __init__(self, count, harm):
        self.count, self.harm, self.steps = count, harm, []

    def __call__(self, step):
        self.steps.append(step)
        if step.done == self.count:
            self.harm()


def assert_whole(audit, expected, steps=()):
    tables = [a.table(unmeasured=True).arrow.drop_columns(["seconds", "reused"]) for a in (audit, expected)]
    assert tables[0].equals(tables[1])
    times = Counter(step.row.name for step in steps if step.row is not None)
    assert not times or set(times.values()) == {1}


def test_a_worker_killed_in_the_middle_costs_nothing_but_time(model, expected, cluster):
    at = At(3, lambda: cluster.kill_workers(1))
    audit = tw.audit(model, executor=f"dask://{cluster.address}", progress=at, use_cache=False)
    assert_whole(audit, expected, at.steps)


def test_a_scheduler_that_is_restarted_gets_the_rest_again(model, expected, cluster):
    at = At(3, cluster.restart)
    audit = tw.audit(model, executor=f"dask://{cluster.address}", progress=at, use_cache=False, patience=60.0)
    assert_whole(audit, expected, at.steps)


def test_a_worker_that_stands_still_is_not_waited_for(model, expected, cluster):
    at = At(3, lambda: cluster.workers[0].send_signal(signal.SIGSTOP))
    audit = tw.audit(model, executor=f"dask://{cluster.address}", progress=at, use_cache=False, patience=20.0)
    assert_whole(audit, expected, at.steps)


def test_when_all_workers_are_gone_the_rest_is_marked_and_the_next_audit_goes_on(model, expected, cluster):
    where = f"dask://{cluster.address}"
    at = At(5, lambda: cluster.kill_workers(2))
    cut = tw.audit(model, executor=where, progress=at, patience=8.0)
    done = [row.name for row in cut.rows if row.measured]
    marked = [row for row in cut.rows if row.status == "FAILED"]
    assert len(done) >= 5
    assert len(done) + len(marked) == COUNT
    assert all("run it again" in row.reason for row in marked)
    cluster.heal()
    again = tw.audit(model, executor=where)
    assert again.provenance.reused == len(done)
    assert_whole(again, expected)


def test_a_scheduler_that_is_not_there_is_said_before_any_work(model, monkeypatch):
    pytest.importorskip("distributed", reason="needs tailwise[dask]")
    monkeypatch.setattr("tailwise.core.execution.dask_engine._CONNECT", 0.2)
    with pytest.raises(tw.UnreadableError, match="scheduler cannot be reached"):
        tw.audit(model, executor="dask://127.0.0.1:1")


def test_on_ray_an_item_that_kills_its_workers_is_given_up_alone():
    ray = pytest.importorskip("ray", reason="needs tailwise[ray]")
    from tailwise.core.execution.ray_engine import RayEngine

    def deadly(items):
        if 3 in items:
            os.kill(os.getpid(), signal.SIGKILL)
        return [item * item for item in items]

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        work = SpreadWork(deadly, list, lambda item, why: (item, why), most=4)
        found = list(spread(RayEngine("", None, 0.0), work, range(16), Patience()))
    finally:
        ray.shutdown()
    [(item, why)] = [result for result in found if isinstance(result, tuple)]
    assert item == 3
    assert "worker died" in why
    assert sorted(r for r in found if not isinstance(r, tuple)) == [i * i for i in range(16) if i != 3]


def test_a_process_pool_that_breaks_ends_with_the_rest_marked_and_the_next_audit_goes_on(model, expected):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as broken:
        at = At(3, lambda: [os.kill(process, signal.SIGKILL) for process in list(broken._processes)])
        cut = tw.audit(model, executor=broken, progress=at)
    done = sum(row.measured for row in cut.rows)
    assert 3 <= done < COUNT
    assert all("run it again" in row.reason for row in cut.rows if not row.measured)
    again = tw.audit(model)
    assert again.provenance.reused == done
    assert_whole(again, expected)


def test_a_shard_cut_short_spoils_its_own_matrices_alone(model, expected, tmp_path):
    """Truncated between the reading of the headers and that of the bytes."""
    for file in model.iterdir():
        shutil.copy(file, tmp_path / file.name)
    with tw.open_checkpoint(tmp_path) as checkpoint, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        os.truncate(tmp_path / "model-00002-of-00002.safetensors", 200_000)
        audit = tw.audit(checkpoint, executor=pool, use_cache=False)
    spoilt = [row for row in audit.rows if not row.measured]
    assert {row.status for row in spoilt} == {"UNREADABLE"}
    assert len(spoilt) == len(audit) == COUNT / 2
    for layer in audit:
        assert layer.spectrum.eigenvalues.tobytes() == expected[layer.row.name].spectrum.eigenvalues.tobytes()


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    generator = torch.Generator().manual_seed(2)
    tensors = {f"layers.{i}.mlp.up_proj.weight": torch.randn(200 + i, 260, generator=generator) for i in range(COUNT)}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def expected_there(one_file):
    return tw.audit(one_file, use_cache=False)


def test_connections_that_the_store_drops_are_tried_again(one_file, expected_there, cluster):
    with serving(one_file) as (address, handler):
        # Every matrix twice: once as it is read ahead, once when it is needed.
        at = At(0, lambda: setattr(handler, "drops", 12))
        where = f"dask://{cluster.address}"
        audit = tw.audit(f"{address}/model.safetensors", executor=where, progress=at, use_cache=False)
    assert handler.drops == 0
    assert_whole(audit, expected_there, at.steps)


@pytest.mark.skipif(not Apart.possible(), reason="network namespaces take root and iproute2")
def test_a_network_cut_to_the_store_marks_the_rest_and_the_next_audit_goes_on(
    one_file, expected_there, cluster, monkeypatch
):
    monkeypatch.setattr("tailwise.core.storage.HTTP_SECONDS", 0.5)
    store = Apart(one_file)
    try:
        where, model = f"dask://{cluster.address}", f"{store.address}/model.safetensors"
        at = At(3, store.pull)
        cut = tw.audit(model, executor=where, progress=at, patience=10.0)
        done = sum(row.measured for row in cut.rows)
        assert 3 <= done < COUNT
        assert {row.status for row in cut.rows if not row.measured} == {"UNREADABLE"}
        assert len(cut.rows) == len({row.name for row in cut.rows}) == COUNT
        store.plug()
        again = tw.audit(model, executor=where)
        assert again.provenance.reused == done
        assert_whole(again, expected_there)
    finally:
        store.close()


@pytest.mark.skipif(not Apart.possible(), reason="network namespaces take root and iproute2")
def test_a_network_that_comes_back_in_time_leaves_no_trace(one_file, expected_there, cluster, monkeypatch):
    monkeypatch.setattr("tailwise.core.storage.HTTP_SECONDS", 0.5)
    store = Apart(one_file)
    plug = Timer(1.0, store.plug)

    def cut():
        store.pull()
        plug.start()

    try:
        at = At(3, cut)
        model = f"{store.address}/model.safetensors"
        audit = tw.audit(model, executor=f"dask://{cluster.address}", progress=at, use_cache=False)
        assert_whole(audit, expected_there, at.steps)
    finally:
        plug.join()
        store.close()
