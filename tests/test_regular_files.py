"""Files are read whole and within bounds; what is no file is told at once."""

import os
import tracemalloc

import pytest

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import is_text, mended, read_bytes, read_text


@pytest.mark.parametrize("length", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_file_is_read_whole(tmp_path, length):
    (tmp_path / "x").write_bytes(os.urandom(length))
    assert read_bytes(tmp_path / "x") == (tmp_path / "x").read_bytes()


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    tracemalloc.start()
    try:
        read_bytes(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_file_beyond_the_limit_is_told_before_it_is_read(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableError, match="too large"):
        read_bytes(tmp_path / "x")
    with pytest.raises(UnreadableError, match="larger than 0 MiB"):
        read_bytes(__file__, most=10)


@pytest.mark.parametrize(("make", "what"), [("pipe", "a pipe"), ("folder", "a directory"), ("zero", "a device")])
def test_what_is_no_file_is_told_at_once(tmp_path, make, what):
    path = tmp_path / "x"
    if make == "pipe":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UnreadableError, match=what):
        read_bytes(path)


def test_a_link_in_a_circle_is_an_error_of_the_system(tmp_path):
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(OSError, match="symbolic links"):
        read_bytes(tmp_path / "x")


def test_text_has_the_line_ends_of_python(tmp_path):
    (tmp_path / "x").write_bytes("a\r\nb\rc\n".encode("utf-8-sig"))
    assert read_text(tmp_path / "x", "utf-8-sig") == "a\nb\nc\n"


def test_halves_of_characters_are_seen_anywhere():
    assert is_text({"a": ["é", {"𝕏": None}], 1: float("nan")})
    for document in ("\ud800", ["\udfff"], {"\ud800": 1}, {"a": [{"b": "x\ud9ff"}]}):
        assert not is_text(document)
        assert is_text(mended(document))
