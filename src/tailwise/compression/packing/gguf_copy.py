"""A GGUF file written again: its metadata as they are, some tensors in other types, all others byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.formats.gguf import GgufCheckpoint
from tailwise.compression.packing.gguf_packing import row_bytes
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Of a file that was split, and what is said anew.
_DROPPED = ("split.", "GGUF.")
_ANEW = ("general.architecture", "general.file_type", "general.quantization_version")
_COPIED = 16  # times as fast as rounding, entry by entry


@dataclass(frozen=True)
class GgufCopy:
    """What is to be written."""

    source: GgufCheckpoint
    types: Mapping[str, str]  # tensor → name of its new type, as gguf has it; the others stay
    blocks: Callable[[str], torch.Tensor]  # the bytes of a tensor in its new type: uint8, its rows by bytes of a row
    file_type: int
    said: Mapping[str, str | int]  # added to the metadata

    def write(self, path: Path, progress: Callable[[int, int], None]) -> None:
        """Tensor by tensor, in the order of the source."""
        import gguf

        writer = gguf.GGUFWriter(path, _architecture(self.source))
        try:
            self._head(writer)
            names = list(self.source.tensors)
            for name in names:
                self._info(writer, name)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            work = {name: self._work(name) for name in names}
            total, done = sum(work.values()), 0
            for name in names:
                writer.write_tensor_data(self._data(name))
                done += work[name]
                progress(done, total)
        finally:
            writer.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def _work(self, name: str) -> int:
        """Entries of a tensor, those that are copied counted for less: rounding takes the time."""
        entries = self.source.tensors[name].numel
        return entries if name in self.types else max(1, entries // _COPIED)

    def _head(self, writer: Any) -> None:
        import gguf

        for field in gguf.GGUFReader(self.source.files[0].local_path()).fields.values():
            if field.name.startswith(_DROPPED) or field.name in _ANEW or field.name in self.said:
                continue
            kind, value = field.types[0], _value(field)
            if isinstance(value, list) and not value:  # gguf writes no empty lists; absent means the same
                continue
            if field.name == gguf.Keys.General.ALIGNMENT:
                writer.data_alignment = int(value)
            writer.add_key_value(field.name, value, kind, field.types[-1] if len(field.types) > 1 else None)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(self.file_type)
        for key, value in self.said.items():
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)

    def _info(self, writer: Any, name: str) -> None:
        import gguf
        import numpy as np

        kind = self.types.get(name)
        spec = self.source.tensors[name]
        if kind is not None:
            size = row_bytes(kind, spec.shape[-1])
            shape, number = (*spec.shape[:-1], size), gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), spec.numel // spec.shape[-1] * size, number)
            return
        type_id, stored = self.source.stored_type(name)
        try:
            number = gguf.GGMLQuantizationType(type_id)
        except ValueError as error:
            raise UnreadableError(
                f"has the type number {type_id}, which the gguf package cannot write", where=name,
                fix="pip install -U gguf",
            ) from error  # fmt: skip
        # Of float16, so that the shape is that of entries and not of bytes.
        writer.add_tensor_info(name, stored, np.dtype(np.float16), spec.nbytes, number)

    def _data(self, name: str) -> np.ndarray[Any, Any]:
        import numpy as np

        if name in self.types:
            found: np.ndarray[Any, Any] = self.blocks(name).contiguous().numpy()
            return found
        return np.frombuffer(self.source.stored_bytes(name), np.uint8)


def _architecture(source: GgufCheckpoint) -> str:
    found = source.metadata.get("general.architecture")
    if not found:
        fix = "the file is damaged or made for another program: convert the model again"
        raise UnreadableError("says no general.architecture, without which llama.cpp loads nothing", where=source.uri,
                              fix=fix)  # fmt: skip
    return found


def _value(field: Any) -> Any:
    """As the writer takes it; strings as bytes, since tokens may be pieces of characters."""
    import gguf

    kind = gguf.GGUFValueType
    if field.types[0] == kind.ARRAY:
        if field.types[-1] == kind.STRING:
            return [field.parts[place].tobytes() for place in field.data]
        return [value for place in field.data for value in field.parts[place].tolist()]
    return field.parts[-1].tobytes() if field.types[0] == kind.STRING else field.parts[-1].tolist()[0]


@dataclass(frozen=True)
class Importances:
    """What calibration came to for one tensor: sums of squared inputs, (matrices, inputs), and tokens of each."""

    squares: torch.Tensor
    tokens: torch.Tensor


def write_imatrix(path: Path, found: Mapping[str, Importances], windows: tuple[int, int], dataset: str) -> None:
    """The file that llama.cpp's `--imatrix` reads, of tensors by GGUF's names; `windows` are how many, and how long."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "")  # of no architecture
    try:
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, windows[0])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, windows[1])
        for name, one in found.items():
            writer.add_tensor(f"{name}.in_sum2", one.squares.numpy().astype(np.float32))
            writer.add_tensor(f"{name}.counts", one.tokens.numpy().astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
