"""ONNX: the constants of a graph, read without building it. External data stays inside the file's folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.bytesource import ByteSource, Folder
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import TensorStore, torch_dtype
from tailwise.checkpoints.formats.onnx_graph import Constant, constants_of, is_made_up, names_of, text_of
from tailwise.checkpoints.formats.repeated import Laid, beyond_what_is_held
from tailwise.checkpoints.inside import inside
from tailwise.checkpoints.spread import spread
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.optional import how_to_get

if TYPE_CHECKING:
    import torch

_LIMIT = (1 << 31) - 1  # of a protobuf message
_MAX_NUMEL = 1 << 62
#: Numbers of TensorProto.DataType.
_CODES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 14: "C64", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2", 21: "U4", 22: "I4",
}  # fmt: skip
_HALVES = frozenset({"U4", "I4"})  # two to a byte, the low half first
_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
         "U16": 16, "U4": 4, "I4": 4}  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """Where a tensor's entries are."""

    constant: Constant
    code: str
    shape: tuple[int, ...]  # as stored
    file: ByteSource | None  # external data
    offset: int
    nbytes: int
    direction: int = 0  # of a recurrent layer


class OnnxCheckpoint(TensorStore):
    """The initializers and large constants of one ONNX file."""

    format = "onnx"

    def __init__(
        self,
        uri: str,
        files: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        folder: Folder,
    ) -> None:
        (self._file,) = files
        self._folder, self._external = folder, dict[str, ByteSource]()
        model = _parsed(self._file)
        self._places: dict[str, _Place] = {}
        self.unsupported: dict[str, str] = {}
        self.aside: dict[str, str] = {}
        kinds, tensors = dict[str, str](), dict[str, TensorSpec]()
        try:
            for name, constant in names_of(constants_of(model)):
                for spec, place in self._specs(name, constant):
                    tensors[spec.name], self._places[spec.name] = spec, place
                    if constant.kind:
                        kinds[spec.name.rpartition(".")[0]] = constant.kind
        except BaseException:
            self._close_external()
            raise
        self.unsupported |= beyond_what_is_held(
            Laid(name, place.file, place.file.size, place.nbytes)
            for name, place in self._places.items() if place.file is not None
        )  # fmt: skip
        metadata = {text_of(item.key): text_of(item.value) for item in model.metadata_props}
        metadata["producer"] = text_of(model.producer_name)
        super().__init__(uri, tensors, config=config, metadata=metadata, revision=revision)
        self.module_kinds = kinds
        self.readings = {name: "onnx" for name, place in self._places.items() if place.constant.scale is not None}
        self.read_whole = frozenset(self.readings) | {n for n, p in self._places.items() if p.constant.gates}

    def _specs(self, name: str, constant: Constant) -> Iterable[tuple[TensorSpec, _Place]]:
        proto = constant.proto
        where = f"{self._file.name}, tensor {name[:120]}"
        code = _CODES.get(proto.data_type, f"ONNX_{proto.data_type}")
        if proto.data_type == 8:  # texts
            return
        shape = tuple(int(size) for size in proto.dims)
        if any(size < 0 for size in shape) or prod(max(size, 1) for size in shape) > _MAX_NUMEL:
            raise UnreadableError(f"the shape {list(shape)[:8]} cannot be", where=where, fix="export the model again")
        place = self._place(constant, code, shape, where)
        if constant.kind and constant.recurrent and shape and shape[0] in (1, 2):
            for direction in range(shape[0]):
                full = f"{name}_reverse" if direction else name
                yield (
                    TensorSpec(full, code, shape[1:], place.nbytes // shape[0]),
                    _Place(constant, code, shape, place.file, place.offset, place.nbytes, direction),
                )
            return
        if constant.packed is not None:
            rows, cols, bits = constant.packed
            if fault := _fault_of_blocks(constant, shape, code):
                self.unsupported[name] = fault
            else:
                yield TensorSpec(name, f"U{bits}", (rows, cols), place.nbytes), place
                return
        if not constant.kind and not constant.recurrent and len(shape) > 1 and is_made_up(constant.name):
            if constant.scale is not None:
                self.unsupported[name] = (
                    "codes for an operator that is not known here; give the model before quantization"
                )
            else:
                self.aside[name] = "a constant of the graph that no product, convolution or table look-up uses"
        if constant.scale is None and constant.kind and code in ("I8", "U8", "I4", "U4"):
            self.unsupported[name] = (
                f"{code} codes whose scale is not in the file as a constant; give the model before quantization"
            )
        yield TensorSpec(name, code, shape, place.nbytes), place

    def _place(self, constant: Constant, code: str, shape: tuple[int, ...], where: str) -> _Place:
        proto, numel = constant.proto, prod(shape)
        nbytes = (numel * _BITS.get(code, 8) + 7) // 8
        if proto.data_location == 1:
            file, offset = self._outside(proto, nbytes, where)
            return _Place(constant, code, shape, file, offset, nbytes)
        held = len(proto.raw_data) if proto.HasField("raw_data") else _typed_bytes(proto, code)
        if held != nbytes and code in _CODES.values():
            raise UnreadableError(
                f"{code} of shape {list(shape)} takes {nbytes} bytes, and {held} are there",
                where=where,
                fix="the file is damaged: export or download it again",
            )
        return _Place(constant, code, shape, None, 0, nbytes)

    def _outside(self, proto: Any, nbytes: int, where: str) -> tuple[ByteSource, int]:
        """The file of external data, and where in it the tensor begins."""
        given = {entry.key: entry.value for entry in proto.external_data}
        location = given.get("location", "")
        try:
            offset, length = int(given.get("offset", "0") or 0), int(given.get("length", nbytes) or 0)
        except ValueError as error:
            raise UnreadableError("its external data has no offset", where=where, fix="export it again") from error
        if location not in self._external:
            self._external[location] = self._folder.source(
                inside(self._folder, location, where=where, what="its external data")
            )
        file = self._external[location]
        if offset < 0 or length != nbytes or offset + nbytes > file.size:
            raise UnreadableError(
                f"its external data would be bytes {offset} to {offset + nbytes} of {location}, which has {file.size}",
                where=where,
                fix="download all files of the model again",
            )
        return file, offset

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        place = self._places[spec.name]
        if not place.constant.gates and place.constant.scale is None:
            return self._stored(place, start, stop)
        whole = self._stored(place, 0, place.shape[0] if place.shape else 1)
        if place.constant.packed is not None:
            return self._unpacked(whole, place.constant, f"{self._file.name}, tensor {spec.name}")[start:stop]
        if place.constant.scale is not None:
            whole = self._decoded(whole, place, f"{self._file.name}, tensor {spec.name}")
        if place.constant.gates:
            whole = _in_torchs_order(whole[place.direction], place.constant.gates)
        return whole[start:stop] if spec.shape else whole

    def _stored(self, place: _Place, start: int, stop: int) -> torch.Tensor:
        """Rows as they are stored, four-bit codes as bytes."""
        import torch

        where = f"{self._file.name}, tensor {place.constant.name}"
        if place.code in _HALVES:
            return _halves(torch.frombuffer(bytearray(self._bytes(place, 0, place.nbytes)), dtype=torch.uint8), place)[
                start : stop if place.shape else None
            ]
        dtype = torch_dtype(place.code, where=where)
        shape = (stop - start, *place.shape[1:]) if place.shape else ()
        row = place.nbytes // max(place.shape[0] if place.shape else 1, 1)
        data = bytearray(self._bytes(place, start * row, (stop - start) * row))
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(shape)

    def _bytes(self, place: _Place, start: int, count: int) -> bytes:
        if place.file is not None:
            return place.file.read(place.offset + start, count)
        proto = place.constant.proto
        raw: bytes = proto.raw_data if proto.HasField("raw_data") else _typed(proto)
        return raw[start : start + count]

    def _decoded(self, codes: torch.Tensor, place: _Place, where: str) -> torch.Tensor:
        """(code − zero) · scale in float32, a scale for the tensor, for each index of an axis, or for each block."""
        import torch

        constant = place.constant
        scale = self._small(constant.scale, where).to(torch.float32)
        zero = torch.zeros(()) if constant.zero is None else self._small(constant.zero, where).to(torch.float32)
        axis = constant.axis + codes.ndim if constant.axis < 0 else constant.axis
        try:
            scale, zero = (_along(values, codes, axis, constant.block) for values in (scale, zero))
            return (codes.to(torch.float32) - zero) * scale
        except (RuntimeError, IndexError) as error:
            raise UnreadableError("its scales do not fit its shape", where=where, fix="export it again") from error

    def _unpacked(self, packed: torch.Tensor, constant: Constant, where: str) -> torch.Tensor:
        """The matrix or table of packed codes in float32; without zeros, the middle of the codes is zero."""
        import torch

        if constant.packed is None:
            raise AssertionError("only packed codes are unpacked")
        rows, cols, bits = constant.packed
        codes = _low_first(packed, bits).reshape(rows, -1)
        scale = self._small(constant.scale, where).to(torch.float32).reshape(rows, -1)
        zero = torch.full((), float(1 << (bits - 1)))
        if constant.zero is not None:
            stored = self._small(constant.zero, where)
            zero = stored.reshape(rows, -1)
            if not stored.is_floating_point():
                zero = _low_first(zero, bits)
            zero = spread(zero[:, : scale.shape[1]].to(torch.float32), constant.block, codes.shape[1], 1)
        return ((codes.to(torch.float32) - zero) * spread(scale, constant.block, codes.shape[1], 1))[:, :cols]

    def _small(self, constant: Constant | None, where: str) -> torch.Tensor:
        if constant is None:
            raise AssertionError("a code without a scale is not decoded")
        shape = tuple(int(size) for size in constant.proto.dims)
        place = self._place(constant, _CODES.get(constant.proto.data_type, "?"), shape, where)
        return self._stored(place, 0, shape[0] if shape else 1)

    @override
    def identity(self, name: str) -> str | None:
        """The file, its external data, and the constant's name."""
        self._spec(name)
        place = self._places[name]
        identities = [self._file.identity(), *([place.file.identity()] if place.file is not None else [])]
        known = [item for item in identities if item is not None]
        return None if len(known) < len(identities) else "+".join([*known, place.constant.name, str(place.direction)])

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), part=self.chosen or None))

    @override
    def close(self) -> None:
        super().close()
        self._places.clear()
        self._file.close()
        self._close_external()

    def _close_external(self) -> None:
        for file in self._external.values():
            file.close()


def _parsed(file: ByteSource) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UsageError(
            "reading ONNX files needs the onnx package", where=file.name, fix=how_to_get("onnx")
        ) from error
    if file.size > _LIMIT:
        raise UnreadableError(
            f"is {file.size} bytes, and an ONNX file can have 2 GiB",
            where=file.name,
            fix="save it with external data: onnx.save(model, path, save_as_external_data=True)",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(file.read(0, file.size))
    except (DecodeError, RuntimeError, ValueError) as error:
        raise UnreadableError(
            "is not a whole ONNX file", where=file.name, fix="it is damaged or cut off: download or export it again"
        ) from error
    return model


def _typed_bytes(proto: Any, code: str) -> int:
    """Bytes that the entries of a typed field stand for."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    count = max(len(getattr(proto, name)) for name in fields)
    if code in _HALVES:
        return int(count)  # an int32 holds two codes
    return int(count) * _BITS.get(code, 8) // 8 // (2 if code == "C64" else 1)


def _typed(proto: Any) -> bytes:
    from onnx import numpy_helper

    if proto.data_type in (21, 22):
        return bytes(value & 0xFF for value in proto.int32_data)
    return bytes(numpy_helper.to_array(proto).tobytes())


def _halves(packed: torch.Tensor, place: _Place) -> torch.Tensor:
    """Four-bit codes as int8, shape as stored."""
    import torch

    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten()[: prod(place.shape)].to(torch.int8)
    return (torch.where(codes > 7, codes - 16, codes) if place.code == "I4" else codes).reshape(place.shape)


def _low_first(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of 2, 4 or 8 bits that bytes hold, lowest bits first, along the last axis."""
    import torch

    parts = [packed >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)


def _fault_of_blocks(constant: Constant, shape: tuple[int, ...], code: str) -> str:
    """Why the packed codes of a MatMulNBits or of a table cannot be read, or nothing."""
    rows, cols, bits = constant.packed or (0, 0, 0)
    block, is_table = constant.block, constant.kind == "Embedding"
    known = code == "U8" and bits in (2, 4, 8) and block > 0 and rows > 0 and cols > 0 and constant.scale is not None
    wanted = (rows, cols * bits // 8) if is_table else (rows, -(-cols // max(block, 1)), block * bits // 8)
    if not known or shape != wanted or constant.scale is None:
        maker = "GatherBlockQuantized" if is_table else "MatMulNBits"
        return f"codes of {bits} bits packed by {maker} in a layout that is not known here"
    blocks = -(-cols // block)
    return "" if prod(constant.scale.proto.dims) == rows * blocks else "its scales do not fit its blocks"


def _along(values: torch.Tensor, codes: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Scales (or zeros) in a shape that broadcasts to that of the codes; `IndexError` where there are more of them."""
    if values.numel() == 1:
        return values.reshape(())
    if values.ndim == 1 and not (block and codes.ndim == 1):
        values = values.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
    if values.ndim > codes.ndim or any(a > b for a, b in zip(values.shape[::-1], codes.shape[::-1], strict=False)):
        raise IndexError(f"scales of shape {list(values.shape)} for codes of shape {list(codes.shape)}")
    if block and values.ndim == codes.ndim:
        return spread(values, block, codes.shape[axis], axis)
    return values


def _in_torchs_order(matrix: torch.Tensor, gates: tuple[int, ...]) -> torch.Tensor:
    """The gates' blocks of rows in torch's order."""
    import torch

    blocks = matrix.chunk(len(gates))
    return torch.cat([blocks[gate] for gate in gates])
