"""Remote matrices are on their way before their turn: as many as memory allows, and never other numbers."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from safetensors.torch import save

import tailwise as tw
from tailwise.audits.ahead import ReadAhead
from tailwise.audits.prepare import prepare
from tailwise.checkpoints import remote

STREAM = torch.Generator().manual_seed(3)
WEIGHTS = {
    f"layers.{i}.{role}.weight": torch.randn(96, 64 + i, generator=STREAM).bfloat16()
    for i in range(6)
    for role in ("self_attn.q_proj", "mlp.up_proj")
}


@pytest.fixture
def address(server):
    server.files["/m.safetensors"] = save(WEIGHTS)
    return f"{server.url}/m.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.01, 0.01))


def test_ranges_come_side_by_side_and_numbers_are_those_of_the_file(server, address):
    server.pause = 0.1
    found = tw.audit(address, workers=1, use_cache=False)
    assert max(server.at_once) > 4
    here = tw.audit(WEIGHTS, use_cache=False)
    assert {row.name: row.metrics for row in found.rows} == {row.name: row.metrics for row in here.rows}
    # A header, and each matrix once.
    assert sum(nbytes > 1000 for _, nbytes in server.served("/m.safetensors")) <= len(WEIGHTS) + 2


def test_what_is_known_is_not_fetched(server, address):
    tw.audit(address)
    server.log.clear()
    tw.audit(address)
    assert sum(nbytes for _, nbytes in server.served("/m.safetensors")) < 10_000


def test_no_more_waits_in_memory_than_was_allowed(server, address):
    with tw.open_checkpoint(address) as checkpoint:
        prepared = prepare(checkpoint, tw.Recipe(), tw.RunOptions())
        order = sorted(prepared.sources, key=lambda source: -source.flops)
        size = order[0].nbytes
        server.log.clear()
        with ReadAhead(checkpoint, order, most_bytes=3 * size) as ahead:
            deadline = time.monotonic() + 60
            while len(server.log) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2)
            assert len(server.log) == 3
            for source in order:
                with ahead.opened(source) as part:
                    (name,) = source.tensors
                    assert part.read(name).equal(WEIGHTS[name])
        assert len(server.log) == len(order)


def test_one_matrix_is_fetched_though_it_is_larger_than_what_may_wait(address):
    with tw.open_checkpoint(address) as checkpoint:
        sources = prepare(checkpoint, tw.Recipe(), tw.RunOptions()).sources
        with ReadAhead(checkpoint, sources, most_bytes=1) as ahead:
            for source in sources:
                with ahead.opened(source) as part:
                    assert part.read(source.tensors[0]).equal(WEIGHTS[source.tensors[0]])


def test_a_matrix_whose_turn_came_before_there_was_room_is_not_fetched_again(server, address):
    with tw.open_checkpoint(address) as checkpoint:
        first, second, *_ = sources = prepare(checkpoint, tw.Recipe(), tw.RunOptions()).sources
        server.log.clear()
        with (
            ReadAhead(checkpoint, sources[:2], most_bytes=1) as ahead,
            ahead.opened(first),
            ahead.opened(second) as part,
        ):
            part.read(second.tensors[0])
        time.sleep(0.2)
        assert len(server.log) == 2


def test_answers_that_break_off_are_asked_for_again(server, address):
    server.cut = 3
    found = tw.audit(address, use_cache=False)
    assert all(row.measured for row in found.rows)


def test_a_store_that_goes_for_good_is_one_reason_in_each_row(server, address):
    with tw.open_checkpoint(address) as checkpoint:
        server.errors["/m.safetensors"] = (503, "")
        found = tw.audit(checkpoint, use_cache=False)
    assert {row.status for row in found.rows} == {"UNREADABLE"}
    assert all("could not be reached" in row.reason for row in found.rows)
    # Not every range waits through all pauses.
    assert len(server.seen) < 60 + 3 * len(WEIGHTS)


def test_what_was_on_its_way_is_given_up_with_the_audit(server, address):
    server.pause = 0.2
    with tw.open_checkpoint(address) as checkpoint:
        sources = prepare(checkpoint, tw.Recipe(), tw.RunOptions()).sources
        with ReadAhead(checkpoint, sources):
            pass
    deadline = time.monotonic() + 60
    while any(t.name.startswith("tailwise-ahead") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name.startswith("tailwise-ahead") for t in threading.enumerate())
