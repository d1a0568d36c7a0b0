"""Data-free plans carried out shard by shard elsewhere: the same bytes, resumed where a run was cut off."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from tiny_models import inputs_for, plan_for, saved

from inline import Inline
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying import by_shard as shards
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.core.errors import UnreadableError, UsageError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """In bfloat16 and several shards."""
    return saved("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, max_shard_size="20KB")


@pytest.fixture(scope="module")
def plans(llama):
    from tailwise.audits.run import audit

    rtn = plan_quantize(audit(llama), QuantizeRequest(bits=5.5, formats=("int4-g16", "int8"), allocator="depth"))
    return {"magnitude": plan_for(llama, sparsity=0.5, allocator="depth"), "rtn": rtn}


def spread_over(executor, **more):
    return ApplyOptions(executor=executor, workers=2, **more)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.mark.parametrize("kind", ["magnitude", "rtn"])
def test_every_file_is_the_same_to_the_byte(llama, plans, kind, tmp_path):
    here = apply(plans[kind], llama, tmp_path / "here")
    wires = Inline()
    there = apply(plans[kind], llama, tmp_path / "there", options=spread_over(wires))
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")
    assert here.tensors == there.tensors
    assert len(wires.sent) == len(list(llama.glob("*.safetensors"))) > 2
    assert max(map(len, wires.sent)) < 20_000


def test_worker_processes_write_the_same_files(llama, plans, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for kind, plan in plans.items():
            apply(plan, llama, tmp_path / f"{kind}-here")
            apply(plan, llama, tmp_path / f"{kind}-there", options=spread_over(pool))
            assert files_of(tmp_path / f"{kind}-here") == files_of(tmp_path / f"{kind}-there")


@pytest.mark.parametrize("kind", ["magnitude", "rtn"])
def test_a_run_that_was_cut_off_goes_on_with_the_shards_that_are_missing(llama, plans, kind, tmp_path):
    def harm(number):
        if number > 2:
            raise BrokenExecutor("killed")

    out = tmp_path / "out"
    with pytest.raises(UnreadableError, match="could not be written"):
        apply(plans[kind], llama, out, options=spread_over(Inline(harm)))
    assert not out.exists()
    wires = Inline()
    found = apply(plans[kind], llama, out, options=spread_over(wires))
    assert found.resumed == 2
    assert len(wires.sent) == len(list(llama.glob("*.safetensors"))) - 2
    apply(plans[kind], llama, tmp_path / "here")
    assert files_of(out) == files_of(tmp_path / "here")


def test_another_plan_does_not_take_the_shards_of_the_one_before(llama, plans, tmp_path):
    def harm(number):
        if number > 2:
            raise BrokenExecutor("killed")

    plan = plans["magnitude"]
    with pytest.raises(UnreadableError):
        apply(plan, llama, tmp_path / "out", options=spread_over(Inline(harm)))
    other = plan.replace(decisions=tuple(item.but(sparsity=0.25) for item in plan))
    assert apply(other, llama, tmp_path / "out", options=spread_over(Inline())).resumed == 0


def test_workers_that_write_where_this_process_does_not_look_are_told_of(llama, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_run", _write_elsewhere)
    with pytest.raises(UsageError, match="does not arrive here"):
        apply(plans["magnitude"], llama, tmp_path / "out", options=spread_over(Inline()))


def _write_elsewhere(task):
    return (shards.WrittenShard(task.shard.name, 100),)


def test_pickled_models_become_safetensors_elsewhere_as_well(llama, plans, tmp_path):
    with open_checkpoint(llama) as checkpoint:
        tensors = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((llama / "config.json").read_bytes())
    torch.save(tensors, old / "pytorch_model.bin")
    options = spread_over(Inline(), force=True)
    apply(plans["magnitude"], old, tmp_path / "there", options=options)
    apply(plans["magnitude"], old, tmp_path / "here", options=ApplyOptions(force=True))
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


@pytest.mark.parametrize(
    ("kind", "operator", "options"),
    [
        ("magnitude", "wanda", {"calibration": inputs_for("llama")["input_ids"]}),
        ("magnitude", "structured", {}),
        ("rtn", "gptq", {"calibration": inputs_for("llama")["input_ids"]}),
        ("rtn", "rtn", {"packed": "torchao"}),
    ],
)
def test_what_one_process_must_do_is_refused_before_any_work(llama, plans, tmp_path, kind, operator, options):
    plan = plans[kind].replace(operator=operator)
    with pytest.raises(UsageError, match="cannot be spread over an executor"):
        apply(plan, llama, tmp_path / "out", options=spread_over(Inline(), **options))
