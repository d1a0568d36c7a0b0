"""PyTorch's own files: `.pt`, `.pth`, `.bin`, `.ckpt`. Nothing in them is ever executed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.bytesource import ByteSource, os_error
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import TensorStore, torch_dtype
from tailwise.checkpoints.formats.memory import decoded, kinds_of, shared_names, spec_of
from tailwise.checkpoints.formats.pickle_bounds import check_file
from tailwise.checkpoints.formats.repeated import Laid, beyond_what_is_held
from tailwise.checkpoints.formats.safe_pickle import load_safely
from tailwise.checkpoints.formats.saved import find_tensors
from tailwise.checkpoints.formats.torchscript import is_torchscript, read_torchscript
from tailwise.core.errors import UnreadableError, UnsafeError

if TYPE_CHECKING:
    import torch


#: A variable of the environment that refuses these files altogether: a web server sets it for what strangers name.
NO_PICKLE = "TAILWISE_NO_PICKLE"


class TorchCheckpoint(TensorStore):
    """The tensors of one or more files of `torch.save`, mapped into memory where their format allows it."""

    format = "torch"

    def __init__(
        self,
        uri: str,
        files: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        part: str | None = None,
    ) -> None:
        check_pickles_let_in(uri, "give a model in safetensors or GGUF")
        self._files = tuple(files)
        self._arrays: dict[str, torch.Tensor] = {}
        self._places: dict[str, tuple[ByteSource, Path]] = {}
        self._keys: dict[str, str] = {}  # tensor → what leads to it in its file
        self._stamps: dict[Path, tuple[int, int]] = {}
        for file in self._files:
            self._add(file, part)
        super().__init__(
            uri,
            {name: spec_of(name, a) for name, a in self._arrays.items()},
            config=config,
            revision=revision,
        )
        self.shared = shared_names(self._arrays)
        kinds = kinds_of(self._arrays)
        self.readings, self.unsupported, self.aside = kinds.readings, kinds.unsupported, kinds.aside
        views = (laid(name, array) for name, array in self._arrays.items() if name not in self.shared)
        self.unsupported |= beyond_what_is_held(view for view in views if view is not None)
        self.read_whole = frozenset(self.readings)

    def _add(self, file: ByteSource, part: str | None) -> None:
        path = file.local_path()
        self._stamps[path] = _stamp(path)
        saved = find_tensors(_saved(file, path), part)
        for name, tensor in saved.tensors.items():
            if name in self._arrays:
                raise UnreadableError(
                    f"the tensor {name} is in two files: {self._places[name][0].name} and {file.name}",
                    fix="the folder holds two copies of a model: open one file, or add its index.json",
                )
            self._arrays[name], self._places[name] = tensor, (file, path)
        self._keys |= saved.places
        self.notes += tuple(note for note in saved.notes if note not in self.notes)
        self.parts += tuple(name for name in saved.parts if name not in self.parts)
        self.chosen = self.chosen or saved.part

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        import torch

        (file, path), tensor = self._places[spec.name], self._arrays[spec.name]
        place = f"{file.name}, tensor {spec.name}"
        if spec.name not in self.readings:
            torch_dtype(spec.dtype, where=place)
        if tensor.device.type == "meta":
            raise UnreadableError("was saved from the meta device and has no values", where=place,
                                  fix="load the weights before saving the model")  # fmt: skip
        if tensor.layout != torch.strided:
            raise UnreadableError(f"has the layout {tensor.layout}", where=place, fix="save it with .to_dense()")
        # A mapped page past the end of a file kills the process, so look before reading; and after it, for rows of
        # two states of the file make no matrix. A copy: what is mapped may change while it is used.
        self._check_unchanged(file, path)
        if spec.name in self.readings:
            tensor = decoded(tensor, place)
        rows = (tensor[start:stop] if spec.shape else tensor).detach().clone()
        self._check_unchanged(file, path)
        return rows

    def _check_unchanged(self, file: ByteSource, path: Path) -> None:
        if _stamp(path) != self._stamps[path]:
            raise UnreadableError("has changed since it was opened", where=file.name, fix="open it again")

    @override
    def identity(self, name: str) -> str | None:
        """The keys that lead to it stand for the place in the file."""
        self._spec(name)
        content = self._places[name][0].identity()
        return None if content is None else f"{content}:{self._keys[name]}"

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), part=self.chosen or None))

    @override
    def close(self) -> None:
        super().close()
        self._arrays.clear()
        for file in self._files:
            file.close()


def check_pickles_let_in(where: str, fix: str) -> None:
    """`UnsafeError` where the environment refuses pickles."""
    if os.environ.get(NO_PICKLE):
        raise UnsafeError(f"is a pickle, and {NO_PICKLE} refuses these", where=where, fix=fix)


@contextlib.contextmanager
def pickles_refused() -> Iterator[None]:
    """The environment refuses pickles, of this process and of those that it starts."""
    before = os.environ.get(NO_PICKLE)
    os.environ[NO_PICKLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_PICKLE, None)
        if before is not None:
            os.environ[NO_PICKLE] = before


def laid(name: str, tensor: torch.Tensor) -> Laid | None:
    """A plain tensor over its storage; None of other kinds, which have bounds of their own."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return None
    if tensor.device.type == "meta":
        return None
    storage = tensor.untyped_storage()
    return Laid(name, storage.data_ptr(), storage.nbytes(), tensor.numel() * tensor.element_size())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise os_error(error, str(path)) from error
    return status.st_size, status.st_mtime_ns


def _saved(file: ByteSource, path: Path) -> Any:
    if not (file.head.startswith(b"PK") and is_torchscript(path)):
        return load_safely(path, file.name)
    check_file(path, file.name, is_zip=True)
    return read_torchscript(path, file.name)
