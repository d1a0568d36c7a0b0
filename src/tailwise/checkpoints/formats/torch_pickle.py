"""PyTorch's own files: `.pt`, `.pth`, `.bin`, `.ckpt`. Nothing in them is ever executed."""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.bytesource import ByteSource, os_error
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.dtypes import torch_dtype
from tailwise.checkpoints.formats.common import TensorStore, check_repeats
from tailwise.checkpoints.formats.memory import decoded, is_array, kinds_of, shared_names, spec_of
from tailwise.checkpoints.formats.pickle_bounds import check_extent, check_file, stored_as_is
from tailwise.checkpoints.formats.saved import find_tensors
from tailwise.checkpoints.formats.torchscript import is_torchscript, read_torchscript
from tailwise.core.errors import UnreadableError, UnsafeError, lacks_memory
from tailwise.core.storage import open_regular

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_PICKLE_HEAD = 1 << 24  # bytes to look through; real models' pickles are far smaller

#: A variable of the environment that refuses these files altogether: a web server sets it for what strangers name.
NO_PICKLE = "TAILWISE_NO_PICKLE"

_REFUSED = re.compile(
    r"unsupported GLOBAL ([\w.]+)|Unsupported global: GLOBAL ([\w.]+)"
    r"|TorchScript|allowlisted|must be imported"
)
#: What it prints keeps tensors and the containers around them, so the copy is read as the file would have been.
_SAFE_COPY = """if you trust the file, make a copy of its tensors alone, where running it can do no harm (with Python):
    import numpy, pathlib, pickle, torch
    def plain(x):
        if callable(getattr(x, "state_dict", None)) and not isinstance(x, type): x = x.state_dict()
        if isinstance(x, torch.Tensor):
            packed = x.is_quantized or type(x).dequantize is not torch.Tensor.dequantize
            return (x.dequantize() if packed else x).detach()
        if hasattr(x, "__array__"):
            x = numpy.array(x)
            return torch.from_numpy(x) if x.dtype.kind in "fiubc" else None
        if isinstance(x, dict): return {{str(k): plain(v) for k, v in x.items()}}
        return [plain(v) for v in x] if isinstance(x, (list, tuple)) else None
    x = {load}
    torch.save(plain(x), {copy!r})
then give that copy: {copy}"""
_LOADED = 'torch.load({name!r}, map_location="cpu", weights_only=False)'
_UNPICKLED = "pickle.loads(pathlib.Path({name!r}).read_bytes())"
#: What a file of torch.save begins with that is no archive: a pickled number.
_OLD_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
#: Estimators of these have arrays of their own names, and no state dict.
_ESTIMATORS = ("sklearn.", "joblib.", "xgboost.", "lightgbm.", "catboost.")
_SAVE_ARRAYS = "load it where running it can do no harm, and save its arrays: numpy.savez('x.npz', coef=model.coef_, …)"


_REPEATS = 1 << 22  # bytes that a tensor of repeated entries may have
_REPEATED = "its entries are few that are repeated (expand); save what they stand for: tensor.contiguous()"


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
        if os.environ.get(NO_PICKLE):
            raise UnsafeError(f"is a pickle, and {NO_PICKLE} refuses these", where=uri,
                              fix="give a model in safetensors or GGUF")  # fmt: skip
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
        _check_views(self._arrays, self.shared, uri)
        kinds = kinds_of(self._arrays)
        self.readings, self.unsupported, self.aside = kinds.readings, kinds.unsupported, kinds.aside
        self.unsupported |= {name: _REPEATED for name, array in self._arrays.items() if _is_repeated(array)}
        self.read_whole = frozenset(self.readings)

    def _add(self, file: ByteSource, part: str | None) -> None:
        path = file.local_path()
        self._stamps[path] = _stamp(path)
        found = find_tensors(_saved(file, path), part)
        for name, tensor in found.tensors.items():
            if name in self._arrays:
                raise UnreadableError(
                    f"the tensor {name} is in two files: {self._places[name][0].name} and {file.name}",
                    fix="the folder holds two copies of a model: open one file, or add its index.json",
                )
            self._arrays[name], self._places[name] = tensor, (file, path)
        self._keys |= found.places
        self.notes += tuple(note for note in found.notes if note not in self.notes)
        self.parts += tuple(name for name in found.parts if name not in self.parts)
        self.chosen = self.chosen or found.part

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
        found = (tensor[start:stop] if spec.shape else tensor).detach().clone()
        self._check_unchanged(file, path)
        return found

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


def _is_repeated(tensor: torch.Tensor) -> bool:
    """Whether far more entries than are stored stand there, by strides of zero: a kilobyte may claim terabytes."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        return False
    if tensor.device.type == "meta":
        return False
    claimed = tensor.numel() * tensor.element_size()
    return claimed > max(_REPEATS, tensor.untyped_storage().nbytes())


def _check_views(arrays: Mapping[str, torch.Tensor], shared: Collection[str], where: str) -> None:
    """Refuse a file whose tensors are many views of the same bytes: each would be measured."""
    import torch

    claimed, stored = 0, dict[int, int]()
    for name, tensor in arrays.items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if name in shared or not plain or tensor.device.type == "meta" or _is_repeated(tensor):
            continue
        storage = tensor.untyped_storage()
        claimed += tensor.numel() * tensor.element_size()
        stored[storage.data_ptr()] = storage.nbytes()
    check_repeats(claimed, sum(stored.values()), where)


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


def load_safely(path: Path, name: str) -> Any:
    """What `torch.load` makes of `path` when only tensors and plain containers are let through."""
    import torch

    is_zip = _is_zip(path, name)
    check_file(path, name, is_zip=is_zip)
    # The bytes of a compressed part are no values, and torch maps them all the same.
    mapped = is_zip and stored_as_is(path)
    if not mapped and path.stat().st_size > 1 << 20:
        why = "was packed again with compression" if is_zip else "has PyTorch's old format"
        _log.warning("%s %s, which cannot be mapped: all of it is read now", name, why)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # torch would go by the name, which lies here
                saved = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
            else:
                saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise os_error(error, name) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _refusal(error, path, name) from error
    check_extent(saved, name, is_array)
    return saved


def _is_zip(path: Path, name: str) -> bool:
    try:
        with open_regular(path) as file:  # as torch looks; an archive may also be found from its end
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise os_error(error, name) from error


def _too_large(name: str) -> UnreadableError:
    return UnreadableError(
        "does not fit into memory", where=name,
        fix="convert it to safetensors, which is read in parts, on a larger machine; or free memory here",
    )  # fmt: skip


def _refusal(error: Exception, path: Path, name: str) -> UnreadableError:
    text = str(error)
    refused = _REFUSED.search(text)
    if lacks_memory(error):
        return _too_large(name)
    whole = _has_directory(path)
    # In a file that is cut off, half a name looks like the name of something unknown.
    old = not whole and isinstance(error, pickle.UnpicklingError)
    if (refused and whole) or (old and _names_code(path)):
        named = (refused[1] or refused[2]) if refused else _first_name(path)
        objects = f"objects ({named})" if named else "objects"
        return UnsafeError(
            f"holds Python {objects}, and was refused: loading it would run code that came with it",
            where=name,
            fix=_SAVE_ARRAYS if named and named.startswith(_ESTIMATORS) else _way_out(path, name),
        )
    if not whole and _is_plain_pickle(path):
        return UnreadableError(
            "is a Python pickle without tensors, and no file of torch.save",
            where=name,
            fix="give the file of the model's weights",
        )
    reason = (text.partition("WeightsUnpickler error:")[2] or text).strip() or "it ends early"
    return UnreadableError(
        f"is not a whole PyTorch file: {reason.splitlines()[0][:200]}",
        where=name,
        fix="it is damaged or cut off: download or save it again",
    )


def _way_out(path: Path, name: str) -> str:
    """Lines of Python that make a copy of the file's tensors alone."""
    with path.open("rb") as file:
        start = file.read(len(_OLD_START))
    by_torch = start.startswith(b"PK") or start == _OLD_START
    load = (_LOADED if by_torch else _UNPICKLED).format(name=name)
    return _SAFE_COPY.format(load=load, copy=f"{path.stem or 'model'}-tensors.pt")


def _has_directory(path: Path) -> bool:
    """Whether a file is a zip archive to its end."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that claims to span several disks
        return False


def _is_plain_pickle(path: Path) -> bool:
    """Whether the file is one whole pickle, as Python's own module writes it."""
    if path.stat().st_size > _PICKLE_HEAD:
        return False
    data = path.read_bytes()
    stream = io.BytesIO(data)
    try:
        for _ in pickletools.genops(stream):
            pass
    except (ValueError, IndexError):
        return False
    return not data.startswith(_OLD_START) and stream.tell() == len(data)


def _first_name(path: Path) -> str | None:
    """The first thing that a pickle asks to import, in protocols whose opcode for it torch does not take."""
    texts: list[str] = []
    try:
        with path.open("rb") as file:
            for op, argument, _ in pickletools.genops(io.BytesIO(file.read(_PICKLE_HEAD))):
                if op.name == "STACK_GLOBAL" and len(texts) > 1:
                    return f"{texts[-2]}.{texts[-1]}"[:120]
                if isinstance(argument, str):
                    texts = [*texts[-1:], argument]
    except (ValueError, OSError, IndexError):
        return None
    return None


def _names_code(path: Path) -> bool:
    """Whether the pickles at the start of a file are whole and name things to import; nothing is run."""
    names: set[str] = set()
    try:
        with path.open("rb") as file:
            start = io.BytesIO(file.read(_PICKLE_HEAD))
        # The old format is five pickles and the data: magic number, version, system, object, keys.
        for _ in range(5):
            names.update(op.name for op, _, _ in pickletools.genops(start))
            if start.tell() == start.getbuffer().nbytes:
                break
    except (ValueError, OSError, IndexError):
        return False
    return not names.isdisjoint({"GLOBAL", "STACK_GLOBAL", "INST"})


def is_side_file(name: str) -> bool:
    """Whether a file in a model's folder is a trainer's (optimizer, arguments, …) and not the weights."""
    stem = os.path.basename(name).split(".")[0]  # noqa: PTH119 - a name in a folder that may be remote
    if "_optim_states" in stem:
        return True
    return stem.startswith(("optimizer", "scheduler", "training_args", "rng_state", "scaler", "trainer_state"))
