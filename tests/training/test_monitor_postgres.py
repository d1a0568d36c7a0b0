"""A monitor whose history is a database on a server, as a team has it."""

from __future__ import annotations

import torch

import tailwise as tw
from tailwise.history.store import History


def test_points_and_alarms_of_a_run_are_on_the_server(postgres, model):
    address = postgres.new_store()
    with tw.Monitor(model, every=2, full_every=4, history=address, run="team", max_overhead=1.0) as monitor:
        for step in range(8):
            with torch.no_grad():
                model[0].weight.add_(0.001)
            monitor.step(loss=float("nan") if step == 5 else 1.0)
    assert monitor.report().errors == ()
    with History(address) as history:
        points, alarms = list(history.points("team")), list(history.alarms("team"))
    assert [point.step for point in points if point.cadence == "cheap"] == [0, 2, 4, 6, 8]
    assert [(alarm.rule, alarm.step) for alarm in alarms] == [("TW701", 6)]
