"""Whatever engine runs an audit, the table is the same bit for bit, and only addresses and spectra travel."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from clusters import QUIET, Cluster
from inline import Inline
from tailwise.audits import on_engine as far
from tailwise.checkpoints.open import open_checkpoint

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]
ENGINES = ("process pool", "thread pool", "dask", "ray")


@pytest.fixture(scope="module")
def engine():
    """Name → an executor, each started when it is first asked for and shared by all tests here."""
    started = {}

    def give(name):
        if name not in started:
            started[name] = _START[name]()
        return started[name][0]

    yield give
    for _, stop in started.values():
        stop()


def _process_pool():
    pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    return pool, pool.shutdown


def _thread_pool():
    pool = ThreadPoolExecutor(2)
    return pool, pool.shutdown


def _dask():
    pytest.importorskip("distributed", reason="needs tailwise[dask]")
    cluster = Cluster(workers=2)
    return f"dask://{cluster.address}", cluster.stop


def _ray():
    ray = pytest.importorskip("ray", reason="needs tailwise[ray]")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return "ray", ray.shutdown


_START = {"process pool": _process_pool, "thread pool": _thread_pool, "dask": _dask, "ray": _ray}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models: two shards with all kinds of matrices, a pickle, packed weights, an adapter with its base."""
    rng = np.random.default_rng(5)
    home = tmp_path_factory.mktemp("models")
    tensors = {
        f"model.layers.{i}.mlp.up_proj.weight": torch.from_numpy(rng.standard_t(3, (40 + 9 * i, 90 - 5 * i)))
        for i in range(6)
    }
    tensors |= {name: value.to(torch.bfloat16) for name, value in list(tensors.items())[3:]}
    tensors["conv.weight"] = torch.from_numpy(rng.standard_normal((24, 10, 3, 3))).float()
    tensors["broken.weight"] = torch.full((30, 30), float("inf"))
    tensors["norm.weight"] = torch.ones(40)
    names = sorted(tensors)
    folders = {name: home / name.replace(" ", "_") for name in ("shards", "pickle", "packed", "base", "adapter")}
    for folder in folders.values():
        folder.mkdir()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name].contiguous() for name in inside}, folders["shards"] / file)
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folders["shards"] / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(tensors, folders["pickle"] / "pytorch_model.bin")
    codes = torch.from_numpy(rng.standard_normal((64, 128))).to(torch.float8_e4m3fn)
    scales = {"layers.0.mlp.up_proj.weight_scale_inv": torch.full((1, 1), 0.5)}
    save_file({"layers.0.mlp.up_proj.weight": codes, **scales}, folders["packed"] / "model.safetensors")
    settings = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}}
    (folders["packed"] / "config.json").write_text(json.dumps(settings))
    W = torch.from_numpy(rng.standard_normal((48, 32))).float()
    save_file({"layers.0.mlp.up_proj.weight": W}, folders["base"] / "model.safetensors")
    stem = "base_model.model.layers.0.mlp.up_proj"
    low = {f"{stem}.lora_A.weight": torch.randn(4, 32), f"{stem}.lora_B.weight": torch.randn(48, 4)}
    save_file(low, folders["adapter"] / "adapter_model.safetensors")
    (folders["adapter"] / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"}))
    return folders


def assert_same(one, other):
    tables = [audit.table(unmeasured=True).arrow.drop_columns(["seconds"]) for audit in (one, other)]
    assert tables[0].equals(tables[1])
    assert one.provenance.fingerprint == other.provenance.fingerprint
    for a, b in zip(one, other, strict=True):
        assert a.spectrum.eigenvalues.tobytes() == b.spectrum.eigenvalues.tobytes()
        assert [s.eigenvalues.tobytes() for s in a.permuted] == [s.eigenvalues.tobytes() for s in b.permuted]


CASES = {
    "permuted": ("shards", {"randomize": 2}),
    "windows": ("shards", {"estimator": "farms", "farms_window": 24, "conv": "pooled"}),
    "pickle": ("pickle", {}),
    "packed": ("packed", {}),
    "adapter": ("adapter", {"min_evals": 4}),
    "merged": ("adapter", {"base": "base", "adapter_mode": "merged"}),
}


@pytest.fixture(scope="module")
def here(models):
    """Case → its audit on threads of this process."""
    return {case: _audit(models, case, workers=2) for case in CASES}


def _audit(models, case, **more):
    model, settings = CASES[case]
    given = {**settings, **({"base": str(models[settings["base"]])} if "base" in settings else {})}
    return tw.audit(models[model], use_cache=False, **given, **more)


# One test an engine, so that each is started once however tests are spread over processes.
@pytest.mark.parametrize("name", ENGINES)
def test_every_audit_is_the_same_bit_for_bit_and_a_second_one_sends_nothing(engine, models, here, name):
    for case, expected in here.items():
        there = _audit(models, case, executor=engine(name))
        assert len(there) > 0, case
        assert_same(expected, there)
    assert {row.status for row in here["permuted"].rows} >= {"OK", "NOT_FINITE", "NOT_A_MATRIX"}
    first = tw.audit(models["shards"], executor=engine(name))
    assert first.provenance.reused == 0
    again = tw.audit(models["shards"], executor=engine(name))
    assert again.provenance.reused == len(again)
    assert_same(tw.audit(models["shards"]), again)


@pytest.mark.parametrize("executor", [Inline(), "dask", "ray"])
def test_a_model_in_memory_is_refused_where_workers_could_not_see_it(executor):
    with pytest.raises(tw.UsageError, match="memory of this process"):
        tw.audit({"a.weight": np.eye(20)}, executor=executor)


def test_a_thread_pool_sees_a_model_in_memory_and_stays_open(engine):
    pool = engine("thread pool")
    arrays = {f"{i}.weight": np.random.default_rng(i).standard_normal((30, 40)) for i in range(4)}
    assert_same(tw.audit(arrays, use_cache=False), tw.audit(arrays, use_cache=False, executor=pool))
    assert pool.submit(int, "3").result() == 3


def test_an_unknown_engine_is_refused_with_those_that_there_are():
    with pytest.raises(tw.UsageError, match="there is no executor 'spark'"):
        tw.audit({"a.weight": np.eye(20)}, executor="spark")


def test_addresses_go_out_and_kilobytes_come_back(pycode):
    wires = Inline()
    audit = tw.audit(pycode, executor=wires, use_cache=False, workers=2)
    with open_checkpoint(pycode) as checkpoint:
        whole = checkpoint.nbytes
    assert max(map(len, wires.sent)) < 8_000
    spectra = sum(layer.spectrum.eigenvalues.nbytes for layer in audit)
    assert sum(map(len, wires.came)) < 3 * spectra + 4_000 * len(audit)
    assert sum(map(len, wires.sent + wires.came)) < whole / 20


def test_a_file_that_changed_since_the_audit_began_is_a_row_that_says_so(models, tmp_path):
    weights = {f"{i}.weight": torch.randn(20, 30) for i in range(3)}
    save_file(weights, tmp_path / "model.safetensors")

    class Changing(Inline):
        def submit(self, function, argument):
            if not self.sent:
                save_file({**weights, "more.weight": torch.zeros(9, 9)}, tmp_path / "model.safetensors")
            return super().submit(function, argument)

    audit = tw.audit(tmp_path, executor=Changing(), use_cache=False, workers=2)
    assert not len(audit)
    assert {row.status for row in audit.rows} == {"UNREADABLE"}
    assert all("has changed since it was opened" in row.reason for row in audit.rows)


def test_an_errand_runs_one_blas_thread_and_gives_the_setting_back(monkeypatch):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    monkeypatch.setattr(far, "_opened", lambda *_: nullcontext())
    monkeypatch.setattr(far, "_measured", lambda *_: seen.append(torch.get_num_threads()))
    try:
        far.run(far.MatrixTask(((None, None),), tw.Recipe(), "cpu", None, {}))
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
