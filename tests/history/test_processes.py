"""Several processes on one store, and one that is killed while it writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_points import point

from tailwise.history.store import History

HERE = str(Path(__file__).parent)
PRELUDE = (
    f"import sys; sys.path.insert(0, {HERE!r})\nfrom made_points import *\nfrom tailwise.history.store import History\n"
)
FOREVER = """
history = History({where!r})
step = 0
while True:
    history.add_point(point(step, run="killed"))
    print(step, flush=True)
    step += 1
"""
SOME = """
history = History({where!r})
print("ready", flush=True)
sys.stdin.readline()
for step in range(20):
    history.add_point(point(step, **{{"layers.{rank}.q": {{"alpha": {rank}.0}}}}))
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_processes_that_write_the_same_run_lose_nothing(where):
    writers = [start(SOME.format(where=where, rank=rank)) for rank in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    with History(where) as history:
        while any(writer.poll() is None for writer in writers):
            for item in history.points("a") if history.runs() else ():
                assert item.layers
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    with History(where) as history:
        assert [len(item.layers) for item in history.points("a")] == [2] * 20


def test_a_writer_that_is_killed_leaves_every_point_that_it_had_written(where):
    writer = start(FOREVER.format(where=where))
    for line in writer.stdout:
        if int(line) >= 20:
            break
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate()
    said = int((rest.split() or ["20"])[-1])
    with History(where, patience=10.0) as history:
        kept = list(history.points("killed"))
        assert [item.step for item in kept] in (list(range(said + 1)), list(range(said + 2)))
        assert all(item == point(item.step, run="killed") for item in kept)
        assert history.add_point(point(10_000, run="killed")) == "new"


@pytest.mark.parametrize("count", [3])
def test_processes_that_make_the_store_at_once(where, count):
    makers = [start(f"History({where!r}).add_point(point({rank}))") for rank in range(count)]
    for maker in makers:
        _, errors = maker.communicate()
        assert maker.returncode == 0, errors
    with History(where) as history:
        assert history.runs()[0].points == count


def test_importing_the_command_line_imports_no_sqlalchemy():
    code = "import sys, tailwise, tailwise.cli.main; print('sqlalchemy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_store_imports_no_torch():
    code = "import sys; from tailwise.history import store, queued; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_monitor_writes_lines_without_sqlalchemy(tmp_path):
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "import torch, tailwise as tw\n"
        "tw.Monitor(torch.nn.Linear(16, 16), full='off', history=sys.argv[1]).close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.jsonl")], check=True)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1


def test_without_sqlalchemy_it_says_what_to_install():
    code = "import sys; sys.modules['sqlalchemy'] = None\nfrom tailwise.history.store import History"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "tailwise[history]"' in done.stderr
