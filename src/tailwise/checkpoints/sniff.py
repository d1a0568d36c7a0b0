"""Which format a file has, by its first bytes: suffixes lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tailwise.checkpoints import foreign
from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.checkpoint import DTYPE_BITS, TensorSpec
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import is_text, mended

_MAGIC = {b"GGUF": "gguf", b"\x89HDF\r\n\x1a\n": "keras", b"\x93NUMPY": "numpy"}
_EXPORTED = (b"/data/weights/", b"/models/", b"/archive_format", b"serialized_exported_program.json")
_MARKED = 256  # bytes in which a file of tailwise's says what it is
_TAR = 257  # where a tar archive says that it is one
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".keras", ".h5", ".npz", ".npy")
READABLE = (
    "tailwise reads safetensors, PyTorch (.pt, .pth, .bin, .ckpt), GGUF, ONNX, Keras (.keras, .h5) and NumPy files"
)


def sniff(source: ByteSource) -> str:
    """The format's name, a key of the readers; `UnreadableError` for what none reads, named where known."""
    if source.size == 0:
        raise UnreadableError("is an empty file", where=source.name, fix="download or save it again")
    head = source.head
    # First: the length it begins with can look like any other format's first bytes.
    if _is_safetensors(head):
        return "safetensors"
    _refuse_foreign(source)
    if _is_gpt_sovits(source):
        raise UnreadableError(
            f"is a model of GPT-SoVITS, a PyTorch file whose first two bytes were changed from PK to {head[:2]!r}",
            where=source.name,
            fix="make a copy with the bytes put back: data = open(FILE, 'rb').read(); "
            "open('model.pth', 'wb').write(b'PK' + data[2:])",
        )
    if head.startswith(b"PK"):
        return _archive(source)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    known = _by_content(head, source.name)
    if known is None:
        _refuse_own(source)
        raise UnreadableError(
            f"is no weights file that tailwise knows (it starts with {head[:8]!r})",
            where=source.name,
            fix=f"{READABLE}; if it is one of these, it is damaged: download it again",
        )
    return known


def _refuse_foreign(source: ByteSource) -> None:
    """Say what a file is that no reader here takes, and what to do with it."""
    for offset, magic, what, fix in foreign.MAGIC:
        if source.head[offset : offset + len(magic)].lower() == magic.lower():
            raise UnreadableError(what, where=source.name, fix=fix)
    for endings, what, fix in foreign.SUFFIXES:
        if source.name.endswith(endings):
            raise UnreadableError(what, where=source.name, fix=fix)
    if source.size >= _TAR + 5 and source.head[:2] != b"PK" and source.read(_TAR, 5) == b"ustar":
        what, fix = foreign.archive_of(source.name)
        raise UnreadableError(what, where=source.name, fix=fix)


def _refuse_own(source: ByteSource) -> None:
    """Say which of tailwise's own files this is."""
    start = source.read(0, min(source.size, _MARKED))
    for mark, what, fix in foreign.OWN:
        if mark in start:
            raise UnreadableError(what, where=source.name, fix=fix)


def _is_gpt_sovits(source: ByteSource) -> bool:
    """Whether two digits stand where a zip archive begins, as GPT-SoVITS marks its versions."""
    head = source.head
    if not (head[:2].isdigit() and head[2:4] == b"\x03\x04" and source.size > 30):
        return False
    length = int.from_bytes(head[26:28], "little")
    return 30 + length <= source.size and source.read(30, length).endswith((b"/data.pkl", b"/constants.pkl"))


def _by_content(head: bytes, name: str) -> str | None:
    if _is_onnx(head, name):
        return "onnx"
    if _is_pickle(head):
        return "torch"
    return "safetensors" if name.endswith(".safetensors") else None


def _archive(source: ByteSource) -> str:
    """The kind of a zip archive, by the name of its first member."""
    head, name = source.head, source.name
    length = int.from_bytes(head[26:28], "little") if head[:4] == b"PK\x03\x04" else 0
    first = source.read(30, length) if 30 + length <= source.size else b""
    if name.endswith(".pt2") or any(mark in first for mark in _EXPORTED):
        raise UnreadableError(
            "is a program of torch.export (.pt2)",
            where=name,
            fix="load it where running it can do no harm, and save its weights: "
            "torch.save(torch.export.load(FILE).state_dict, 'model.pt')",
        )
    if first.decode(errors="replace") in foreign.AUDIT_MEMBERS:
        raise UnreadableError(foreign.AUDIT[0], where=name, fix=foreign.AUDIT[1])
    if first.endswith(b".npy") or name.endswith(".npz"):
        return "numpy"
    if first in (b"metadata.json", b"config.json", b"model.weights.h5") or name.endswith(".keras"):
        return "keras"
    if name.endswith(".zip"):
        raise UnreadableError("is a zip archive of another kind", where=name, fix="unpack it, and give what is inside")
    return "torch"


def _is_pickle(head: bytes) -> bool:
    # Protocols 2 to 5 begin with PROTO; torch has never written 0 and 1.
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_onnx(head: bytes, name: str) -> bool:
    # A protobuf message whose first field is ir_version; SavedModels begin with version 1, which no exporter writes.
    started = head[:1] == b"\x08" and len(head) > 2 and 3 <= head[1] < 0x40 and head[2] & 7 in (0, 2)
    return started or name.endswith(".onnx")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER


#: The limit of the safetensors library; nothing larger is a header.
MAX_HEADER = 100_000_000
_MAX_NUMEL = 1 << 62
_MAX_AXES = 64
_AGAIN = "the file is damaged or was not written by a safetensors writer: download it again"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself."""

    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]  # first byte of each tensor, counted from the start of the file
    metadata: Mapping[str, str]


def read_header(source: ByteSource) -> Header:
    """The header of `source`, whose data section is checked against the file's size but not read."""
    if source.size < 8:
        _fail(source.name, f"has {source.size} bytes, too few for a safetensors file", fix="download it again")
    length = int.from_bytes(source.head[:8], "little")
    if length > MAX_HEADER or length > source.size - 8:
        limit = min(MAX_HEADER, source.size - 8)
        _fail(
            source.name,
            f"claims a header of {length} bytes where at most {limit} are possible",
            fix="it is cut off or not a safetensors file: download it again",
        )
    return parse_header(source.read(8, length), data_bytes=source.size - 8 - length, where=source.name)


def parse_header(text: bytes, *, data_bytes: int, where: str) -> Header:
    """Check and parse the JSON `text` of a header that `data_bytes` bytes of data follow."""
    raw = _load_json(text, where)
    metadata = _metadata(raw.pop("__metadata__", None), where)
    base = 8 + len(text)
    specs: dict[str, TensorSpec] = {}
    offsets: dict[str, int] = {}
    for name, entry in raw.items():
        specs[name], start = _entry(name, entry, data_bytes, where)
        offsets[name] = base + start
    _check_filled(specs, offsets, base, data_bytes, where)
    return Header(specs, offsets, metadata)


def _load_json(text: bytes, where: str) -> dict[str, Any]:
    # ValueError covers bad UTF-8, bad JSON and integers of thousands of digits.
    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError:
        _fail(where, "the header is nested too deeply")
    except ValueError as error:
        _fail(where, f"the header is not valid JSON: {str(error)[:200]}")
    if not isinstance(raw, dict):
        _fail(where, f"the header is a JSON {type(raw).__name__}, and an object was expected")
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_short(name)} appears twice")
    return document


def _metadata(raw: Any, where: str) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        _fail(where, "the header's __metadata__ is not a mapping of text to text")
    return dict(mended(raw))


def _entry(name: str, entry: Any, data_bytes: int, where: str) -> tuple[TensorSpec, int]:
    place = f"{where}, tensor {_short(name)}"
    if not is_text(name):
        _fail(place, "the name is not valid Unicode")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        _fail(place, "the entry lacks one of dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], _shape(entry["shape"], place)
    if not isinstance(dtype, str) or not 0 < len(dtype) <= 32:
        _fail(place, f"the dtype {_short(dtype)} is not a short text")
    start, stop = _range(entry["data_offsets"], place)
    if stop > data_bytes:
        _fail(
            where,
            f"data ends before tensor {_short(name)}: it needs bytes up to {stop}, there are {data_bytes}",
            fix="the file is truncated: download it again",
        )
    _check_size(dtype, shape, stop - start, place)
    return TensorSpec(name, dtype, shape, stop - start), start


def _shape(raw: Any, place: str) -> tuple[int, ...]:
    if not isinstance(raw, list) or len(raw) > _MAX_AXES or not all(map(_is_count, raw)):
        _fail(place, f"the shape {_short(raw)} is not a list of at most {_MAX_AXES} non-negative integers")
    numel = 1
    for size in raw:
        numel *= max(size, 1)
        if numel > _MAX_NUMEL:
            _fail(place, f"the shape {_short(raw)} overflows")
    return tuple(raw)


def _range(raw: Any, place: str) -> tuple[int, int]:
    if not isinstance(raw, list) or len(raw) != 2 or not all(map(_is_count, raw)) or raw[0] > raw[1]:
        _fail(place, f"the data_offsets {_short(raw)} are not a start and an end")
    return raw[0], raw[1]


def _check_size(dtype: str, shape: tuple[int, ...], nbytes: int, place: str) -> None:
    # An unknown dtype has no size to compare with; reading the tensor then fails with the dtype's name.
    if dtype not in DTYPE_BITS:
        return
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    if bits != nbytes * 8:
        _fail(place, f"{dtype} of shape {list(shape)} takes {bits // 8} bytes, the header gives it {nbytes}")


def _check_filled(
    specs: Mapping[str, TensorSpec], offsets: Mapping[str, int], base: int, data_bytes: int, where: str
) -> None:
    end, before = base, "the header"
    for name in sorted(specs, key=lambda key: (offsets[key], specs[key].nbytes)):
        if offsets[name] < end:
            _fail(where, f"the tensors {before} and {_short(name)} overlap")
        if offsets[name] > end:
            _fail(where, f"{offsets[name] - end} bytes before tensor {_short(name)} belong to no tensor")
        end, before = offsets[name] + specs[name].nbytes, _short(name)
    if end != base + data_bytes:
        _fail(where, f"{base + data_bytes - end} bytes after {before} belong to no tensor")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMEL


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _fail(where: str, what: str, *, fix: str = _AGAIN) -> NoReturn:
    raise UnreadableError(what, where=where, fix=fix)
