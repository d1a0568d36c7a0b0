"""Small files that would unfold into more than there is, refused before they do; large honest ones are read."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.formats import pickle_bounds
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UnsafeError

HEAD, STOP = b"\x80\x02", b"."


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def put(number):
    return b"q" + bytes([number])


def get(number):
    return b"h" + bytes([number])


def archive(path, pickled, **options):
    """A file as `torch.save` lays it out, with this for its pickle."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
    return path


def shared(kind, levels=40):
    """Each level holds the one before twice."""
    body = HEAD + (b"]" if kind == "lists" else b")") + put(0)
    for level in range(levels):
        pair = get(level) + get(level)
        body += (b"](" + pair + b"e" if kind == "lists" else pair + b"\x86") + put(level + 1)
    return body


def named(module, name, arguments):
    return HEAD + f"c{module}\n{name}\n".encode() + arguments + b"R" + STOP


HUGE = b"\x8a\x08" + (1 << 36).to_bytes(8, "little") + b"\x85"  # a tuple of one number
OF_TYPE = b"ctorch\nFloatTensor\nctorch\nFloatTensor\n" + HUGE + b"}t"
BOMBS = {
    "shared lists": shared("lists") + STOP,
    "shared tuples": shared("tuples") + STOP,
    "a key of shared tuples": shared("tuples") + b"}" + get(40) + b"K\x01s" + STOP,
    "nested lists": HEAD + b"]" * 200_000 + b"a" * 199_999 + STOP,
    "nested tuples": HEAD + b")" + b"\x85" * 200_000 + STOP,
    "a key of nested tuples": HEAD + b"})" + b"\x85" * 200_000 + b"K\x01s" + STOP,
    "lists filled from outside": HEAD
    + b"".join(b"]" + put(n) for n in range(60))
    + b"".join(get(n) + get(n + 1) + b"a" + get(n + 1) + b"a" for n in range(59))
    + get(0)
    + STOP,
    "a list that holds itself": HEAD + b"]" + put(0) + get(0) + b"a" + STOP,
    "a dict that holds itself": HEAD + b"}" + put(0) + text("a") + get(0) + b"s" + STOP,
    "memory by a number": named("builtins", "bytearray", HUGE),
    "memory by a number, older": named("__builtin__", "bytearray", HUGE),
    "a tensor by a number": named("torch", "FloatTensor", HUGE),
    "a storage by a number": named("torch", "FloatStorage", HUGE),
    "a tensor by a number, behind a call": named("torch._tensor", "_rebuild_from_type_v2", b"(" + OF_TYPE),
    "a slow codec": named("_codecs", "encode", text("\u00fc" * 100) + text("punycode") + b"\x86"),
}


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused(tmp_path, bomb, form):
    path = tmp_path / "model.pt"
    if form == "zip":
        archive(path, bomb)
    else:
        old = io.BytesIO()
        torch.save({"w": torch.ones(2, 2)}, old, _use_new_zipfile_serialization=False)
        start = io.BytesIO(old.getvalue())
        for _ in range(3):
            pickle.load(start)
        path.write_bytes(old.getvalue()[: start.tell()] + bomb + HEAD + b"]" + STOP)
    with pytest.raises(UnreadableError) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 1000


def test_a_pickle_that_unfolds_from_a_small_archive_is_refused_before_it_does(tmp_path):
    path = archive(tmp_path / "model.pt", HEAD + b"]" * (1 << 28), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UnreadableError, match=r"would unfold from|has 268435458 bytes"):
        open_checkpoint(path)


def test_more_objects_than_memory_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_bounds, "_MOST_MADE", 1000)
    path = archive(tmp_path / "model.pt", HEAD + b"(" + b"]" * 1000 + b"l" + STOP)
    with pytest.raises(UnreadableError, match="more objects"):
        open_checkpoint(path)


def test_two_parts_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path / "model.pt", HEAD + b"}" + STOP)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data.pkl", HEAD + b"}" + STOP)
    with pytest.raises(UnreadableError, match="two parts"):
        open_checkpoint(path)


def test_parts_are_gone_through_whatever_the_case_of_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/DATA.PKL", BOMBS["memory by a number, older"])
        file.writestr("archive/version", "3\n")
    with pytest.raises(UnreadableError, match="by a number"):
        tw.audit(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        file.writestr("archive/data.pkl", HEAD + b"}" + STOP)
        file.writestr("archive/Data.pkl", HEAD + b"}" + STOP)
    with pytest.raises(UnreadableError, match="two parts of one name"):
        tw.audit(tmp_path / "y.pt")


def directory(data):
    """Members, their list, and how many they are, of an archive in bytes."""
    place = data.rfind(b"PK\5\6")
    count, size, begin = struct.unpack("<HII", data[place + 10 : place + 20])
    return data[:begin], data[begin : begin + size], count


def moved(listed, by):
    """A list of members that lie so much later."""
    out, at = bytearray(listed), 0
    while at < len(out):
        lengths = struct.unpack("<HHH", out[at + 28 : at + 34])
        (begin,) = struct.unpack("<I", out[at + 42 : at + 46])
        out[at + 42 : at + 46] = struct.pack("<I", begin + by)
        at += 46 + sum(lengths)
    return bytes(out)


def two_lists(tmp_path, large):
    """An archive with two lists of members: which one counts depends on whether the end or the beginning is trusted."""
    bomb = directory(archive(tmp_path / "a.zip", BOMBS["memory by a number, older"]).read_bytes())
    plain = directory(archive(tmp_path / "b.zip", HEAD + b"}" + STOP).read_bytes())
    listed = moved(plain[1], len(bomb[0]))
    data = bomb[0] + plain[0]
    first = len(data)
    if not large:
        data += bomb[1] + listed
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, plain[2], plain[2], len(listed), first, 0)
        return data + end

    def record(count, size, begin):
        return struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, begin)

    data += bomb[1]
    leads = len(data)
    data += record(bomb[2], len(bomb[1]), first)
    second = len(data)
    data += listed + record(plain[2], len(listed), second)
    data += struct.pack("<4sLQL", b"PK\6\7", 0, leads, 1)
    return data + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


@pytest.mark.parametrize("large", [False, True])
def test_an_archive_with_two_lists_of_its_parts_is_refused(tmp_path, large):
    path = tmp_path / "x.pt"
    path.write_bytes(two_lists(tmp_path, large))
    with pytest.raises(UnreadableError, match="can be read in two ways"):
        tw.audit(path)


def test_an_archive_with_a_comment_and_one_in_memory_are_read(tmp_path):
    weights = {"up.weight": torch.randn(60, 50)}
    torch.save(weights, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as file:
        file.comment = b"made elsewhere"
    assert len(tw.audit(tmp_path / "x.pt")) == 1


def test_an_archive_that_claims_to_span_disks_is_told(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3, 3)}, path)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x06\x07")  # the zip64 locator: disk, offset, number of disks
    data[place + 16 : place + 20] = struct.pack("<I", 7)
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableError, match="disk"):
        open_checkpoint(path)


def test_a_file_that_was_packed_again_with_compression_has_its_own_numbers(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(30, 20)
    torch.save({"w": weight}, tmp_path / "a.pt")
    packed = zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pt") as old, packed as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.equal(open_checkpoint(tmp_path / "b.pt").read("w"), weight)


@pytest.mark.parametrize("new_format", [True, False])
def test_what_training_saves_is_within_bounds(tmp_path, new_format):
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(4)).sum().backward()
    optimizer.step()
    saved = {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "losses": [float(n) for n in range(100_000)],
        "shared": [same := {"a": [1, (2, 3)]}, same],
        "raw": bytearray(b"abc"),
        "bytes": b"\xff\x00",
        "set": {1, 2},
        "order": OrderedDict(a=1),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "size": torch.Size([1, 2]),
    }
    path = tmp_path / "checkpoint.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    with open_checkpoint(path) as found:
        name = next(name for name in found.tensors if name.endswith("weight"))
        assert torch.equal(found.read(name), layer.weight)


def test_a_class_is_still_told_apart_from_damage(tmp_path):
    path = archive(tmp_path / "model.pt", named("os", "system", text("true") + b"\x85"))
    with pytest.raises(UnsafeError, match="os"):
        open_checkpoint(path)


CLAIMS = {
    "BINUNICODE": b"X" + struct.pack("<I", 0xFFFFFFF0),
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 1 << 40),
    "BINBYTES": b"B" + struct.pack("<I", 0xFFFFFFF0),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 40),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40),
    "LONG4": b"\x8b" + struct.pack("<i", (1 << 31) - 1),
}


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_a_length_that_is_only_claimed_takes_no_memory(tmp_path, claim, form):
    path = tmp_path / "model.pt"
    pickled = HEAD + CLAIMS[claim] + b"abc" + STOP
    if form == "zip":
        archive(path, pickled)
    else:
        path.write_bytes(pickled)
    tracemalloc.start()
    try:
        with pytest.raises((UnreadableError, UnsafeError)):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_entries_that_are_repeated_without_end_are_one_row(tmp_path):
    tensors = {"many.weight": torch.ones(1, 16).expand(1 << 24, 16), "few.weight": torch.ones(1, 16).expand(32, 16)}
    path = tmp_path / "m.pt"
    torch.save(tensors, path)
    assert path.stat().st_size < 10_000
    rows = {row.name: row for row in tw.audit(path, use_cache=False).rows}
    assert rows["many.weight"].status == "UNSUPPORTED"
    assert "contiguous()" in rows["many.weight"].reason
    assert rows["few"].measured
