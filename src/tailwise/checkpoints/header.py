"""The header of a safetensors file, parsed as if its writer meant harm.

The format: 8 bytes, the little-endian length of the header; the header, a JSON object of
`name: {"dtype", "shape", "data_offsets"}` and an optional `__metadata__`; then the data, which the tensors
fill from its first byte to its last with no overlap and no hole.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.checkpoint import DTYPE_BITS, TensorSpec
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import is_text, mended

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
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_short(name)} appears twice")
    return found


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
