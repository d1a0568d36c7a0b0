"""Pickles of torch, read without running what they name; what they are where they are refused."""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import os_error
from tailwise.checkpoints.formats.memory import is_array
from tailwise.checkpoints.formats.pickle_bounds import check_extent, check_file, stored_as_is
from tailwise.core.archives import is_archive
from tailwise.core.errors import UnreadableError, UnsafeError, lacks_memory
from tailwise.core.storage import open_regular

_log = logging.getLogger(__name__)
_PICKLE_HEAD = 1 << 24  # bytes to look through; real models' pickles are far smaller
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
    whole = is_archive(path)
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
