"""A history of lines: what is written is read, and a torn end harms nothing."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
from made_points import UP, alarm, point

from tailwise.core.errors import UnreachableError, UnreadableError, UsageError
from tailwise.history.jsonl import JsonlHistory, from_line, read_jsonl, to_line

FULL = Path("/dev/full")  # a device that answers every write with "no space left"


@pytest.mark.parametrize("item", [
    point(3, scalars={"a": math.inf, "b": -math.inf}, notes=("é\u2028",)), alarm(2), point(1, **{UP: {}}),
    alarm(1, layers=()),
])  # fmt: skip
def test_a_line_gives_back_what_it_was_made_of(item):
    line = to_line(item)
    assert "\n" not in line
    assert from_line(line) == item


def test_lines_are_json_without_numbers_that_json_lacks():
    line = to_line(point(1, scalars={"nan": math.nan, "inf": math.inf}))
    body = json.loads(line, parse_constant=pytest.fail)
    assert body["scalars"] == {"nan": None, "inf": "inf"}
    assert math.isnan(from_line(line).scalars["nan"])


@pytest.mark.parametrize("wrong", ["", "{", "[]", "7", '{"kind": "point"}', '{"kind": "alarm", "x": 1}'])
def test_what_is_no_line_is_a_value_error(wrong):
    with pytest.raises(ValueError, match=r"."):
        from_line(wrong)


def test_written_items_are_read_in_order(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    items = [point(1), alarm(1), point(2)]
    with JsonlHistory(path) as history:
        for item in items[:2]:
            history.write(item)
    with JsonlHistory(path) as history:
        history.append(items[2])
        assert list(read_jsonl(path)) == items


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_left_out_and_does_not_harm_the_next(tmp_path, cut):
    path = tmp_path / "run.jsonl"
    with JsonlHistory(path) as history:
        history.write(point(1))
        history.write(point(2))
    path.write_bytes(path.read_bytes()[:-cut])
    whole = 2 if cut == 1 else 1  # only the end of the line is lacking
    assert len(list(read_jsonl(path))) == whole
    with JsonlHistory(path) as history:
        history.write(point(3))
    assert [item.step for item in read_jsonl(path)] == [*[1, 2][:whole], 3]


def test_a_damaged_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(f"{to_line(point(1))}\nnonsense\n\n{to_line(point(2))}\n")
    with pytest.raises(UnreadableError, match="line 2 is damaged"):
        list(read_jsonl(path))


def test_what_cannot_be_read_or_opened(tmp_path):
    with pytest.raises(UnreadableError, match="could not be read"):
        list(read_jsonl(tmp_path / "absent"))
    with pytest.raises(UsageError, match="is a folder"):
        JsonlHistory(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="could not be written"):
        JsonlHistory(tmp_path / "file" / "x.jsonl")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_logged_once_and_never_raised(tmp_path, caplog):
    history = JsonlHistory(tmp_path / "run.jsonl")
    history._file.close()
    history._file = FULL.open("ab", buffering=0)
    with pytest.raises(UnreachableError, match="No space left"):
        history.append(point(1))
    for step in range(3):
        history.write(point(step))
    assert history.lost == 3
    assert len(caplog.messages) == 1
    assert "training goes on without it" in caplog.text
    history.close()


def test_a_write_after_the_end_is_counted_and_not_raised(tmp_path):
    history = JsonlHistory(tmp_path / "run.jsonl")
    history.close()
    history.write(point(1))
    assert history.lost == 1


def test_lines_of_two_writers_of_one_file_do_not_mix(tmp_path):
    writers = [JsonlHistory(tmp_path / "a.jsonl") for _ in range(2)]
    layers = {f"layer{i}": {"alpha": 2.0} for i in range(500)}

    def write(writer):
        for step in range(50):
            writer.write(point(step, **layers))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.close()
    found = list(read_jsonl(tmp_path / "a.jsonl"))
    assert len(found) == 100
    assert {len(item.layers) for item in found} == {500}


def test_a_line_of_0_1_is_read():
    body = json.loads(to_line(point(3)))
    body["tempo"] = body.pop("cadence")
    assert from_line(json.dumps(body)) == point(3)
