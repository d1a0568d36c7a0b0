"""TorchScript archives: the tensors of the modules that were scripted or traced. Their code is not even compiled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.formats.inert import Record, read_inert
from tailwise.core.archives import DAMAGED_ARCHIVE, archive_names
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch

_DAMAGED = "it is damaged or cut off: download or save it again"
_LARGEST_PICKLE = 1 << 28
_DEEPEST = 64
#: Storages by the name of their class.
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
}  # fmt: skip


def is_torchscript(path: Path) -> bool:
    """Whether an archive of PyTorch holds code beside its tensors."""
    names = archive_names(path)
    return any(name.endswith("/constants.pkl") for name in names) and any(name.endswith("/data.pkl") for name in names)


def read_torchscript(path: Path, name: str) -> dict[str, Any]:
    """The attributes of the top module that hold tensors, nested as its modules are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _ScriptReader(archive, name).modules()
    except (*DAMAGED_ARCHIVE, AttributeError) as error:
        raise UnreadableError(f"is not a whole TorchScript file: {error}", where=name, fix=_DAMAGED) from error


class _ScriptReader:
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        self._root = next(item for item in archive.namelist() if item.endswith("/data.pkl")).removesuffix("/data.pkl")
        self._storages: dict[str, torch.Tensor] = {}
        self._known: dict[int, Any] = {}

    def modules(self) -> dict[str, Any]:
        info = self._archive.getinfo(f"{self._root}/data.pkl")
        if info.file_size > _LARGEST_PICKLE:
            raise UnreadableError(f"its list of modules has {info.file_size} bytes", where=self._name, fix=_DAMAGED)
        top = self._plain(read_inert(self._archive.read(info), where=self._name, with_storages=True), 0)
        return top if isinstance(top, dict) else {"weight": top} if top is not None else {}

    def _plain(self, value: Any, depth: int) -> Any:
        """Tensors, and the dicts that lead to them; None for everything else."""
        if depth > _DEEPEST:
            raise UnreadableError(f"is nested more than {_DEEPEST} deep", where=self._name, fix=_DAMAGED)
        if id(value) in self._known:
            return self._known[id(value)]
        plain: torch.Tensor | dict[str, Any] | None
        if isinstance(value, Record) and value.path.startswith("torch._utils._rebuild"):
            plain = self._tensor(value)
        elif isinstance(value, Record):
            plain = self._items(value.state.items() if isinstance(value.state, Mapping) else (), depth)
        elif isinstance(value, dict):
            plain = self._items(value.items(), depth)
        elif isinstance(value, list | tuple):
            plain = self._items(enumerate(value), depth)
        else:
            return None
        self._known[id(value)] = plain
        return plain

    def _items(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any] | None:
        plain = {str(key): self._plain(item, depth + 1) for key, item in items}
        return {key: item for key, item in plain.items() if item is not None} or None

    def _tensor(self, record: Record) -> torch.Tensor:
        if record.path != "torch._utils._rebuild_tensor_v2":
            raise UnreadableError(
                f"holds tensors that are not plain ({record.path.rpartition('.')[2]})",
                where=self._name,
                fix="save the model before it was quantized, or its state dict dequantized",
            )
        storage, offset, size, stride = record.args[:4]
        entries = self._storage(storage)
        sizes, strides = _ints(size), _ints(stride)
        numel = 1
        for extent in sizes:
            numel *= extent
        last = offset + sum((extent - 1) * step for extent, step in zip(sizes, strides, strict=True))
        whole = type(offset) is int and offset >= 0 and all(number >= 0 for number in (*sizes, *strides))
        if not whole or (numel and last >= entries.numel()):
            raise UnreadableError("a tensor lies outside its storage", where=self._name, fix=_DAMAGED)
        return entries.as_strided(sizes, strides, offset)

    def _storage(self, record: Any) -> torch.Tensor:
        import torch

        kind, key, numel = record.args[1], str(record.args[2]), record.args[4]
        if key not in self._storages:
            dtype = getattr(torch, _STORAGES[kind.path.rpartition(".")[2]])
            info = self._archive.getinfo(f"{self._root}/data/{key}")
            if type(numel) is not int or info.file_size != numel * dtype.itemsize:
                raise UnreadableError(f"the storage {key[:40]} has another size", where=self._name, fix=_DAMAGED)
            data = bytearray(self._archive.read(info))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _ints(value: Any) -> tuple[int, ...]:
    if isinstance(value, Record):  # torch.jit._pickle.build_intlist
        value = value.args[0]
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise ValueError("a shape is no list of sizes")
    return tuple(value)
