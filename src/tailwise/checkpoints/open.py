"""`open_checkpoint`: from whatever names a model to its checkpoint."""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote, urlparse

from tailwise.checkpoints.adapter_base import named_base
from tailwise.checkpoints.bytesource import AT_ONCE, ByteSource, Folder, LocalFolder, UnlistedFolder, os_error
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import TensorStore
from tailwise.checkpoints.formats.distributed import DistributedCheckpoint
from tailwise.checkpoints.formats.gguf import GgufCheckpoint
from tailwise.checkpoints.formats.keras import KerasCheckpoint
from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.formats.numpy_files import NumpyCheckpoint
from tailwise.checkpoints.formats.onnx import OnnxCheckpoint
from tailwise.checkpoints.formats.safetensors import SafetensorsCheckpoint
from tailwise.checkpoints.formats.torch_pickle import TorchCheckpoint
from tailwise.checkpoints.hub import HubAddress, HubFolder, cached_snapshot, is_offline, parse_hub
from tailwise.checkpoints.layout import (
    Weights,
    averaged_prefixes,
    find_weights,
    modules_beside,
    one_file,
    read_index,
    siblings,
)
from tailwise.checkpoints.remote import RemoteFile, RemoteFolder, remote_info
from tailwise.checkpoints.sniff import sniff
from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.storage import filesystem
from tailwise.core.validation import checked

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_FORMATS: Mapping[str, Callable[..., TensorStore]] = {
    "safetensors": SafetensorsCheckpoint,
    "torch": TorchCheckpoint,
    "gguf": GgufCheckpoint,
    "onnx": OnnxCheckpoint,
    "keras": KerasCheckpoint,
    "numpy": NumpyCheckpoint,
}
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|memory:|[a-z0-9+]+::")
_FILE_SUFFIX = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|onnx|keras|h5|npz|npy|json|pkl)$")


@checked
def open_checkpoint(
    uri: str | os.PathLike[str] | torch.nn.Module | Mapping[str, Any] | Any,
    *,
    revision: str | None = None,
    base: str | None = None,
    adapter_mode: Literal["delta", "merged"] = "delta",
    part: str | None = None,
) -> Checkpoint:
    """The checkpoint that `uri` names. Only headers are read.

    `uri` is a file or folder; a Hugging Face id (`org/name`, `org/name@revision`, `hf://…`), unless a local
    path of that name exists; an fsspec URL; or a live module, mapping of arrays or array. `base` is the model
    that an adapter was trained on, and `adapter_mode` whether the adapter is read as the change it makes
    (`delta`) or as the weights of the base with the change (`merged`); merged without `base`, it is the model that the
    adapter names, a folder or a Hugging Face id. `part` is what to take of a file that holds
    more than one set of weights, as `model_ema`; `UsageError` lists the parts where there is none of that name.
    """
    if isinstance(uri, Checkpoint):
        return uri
    if not isinstance(uri, str | os.PathLike):
        return _chosen(_in_memory(uri), part)
    if adapter_mode not in ("delta", "merged"):
        raise UsageError(f"adapter_mode is 'delta' or 'merged', not {adapter_mode!r}")
    folder, file = _locate(os.fspath(uri), revision)
    if _is_adapter(folder, file):
        if part is not None:
            raise UsageError("an adapter has no parts", where=folder.uri, fix="leave part out")
        return _open_adapter(folder, file, base, adapter_mode)
    if base is not None:
        raise UsageError("a base was given, but this is no adapter of peft", where=folder.uri, fix="leave base out")
    opened = _open_files(folder, _weights(folder, file), folder.uri if file is None else os.fspath(uri), part)
    if "adapter_config.json" in folder.names():  # of a tool other than peft, as MLX: it holds the scale
        opened.config = {**opened.config, "adapter_config": _beside(folder, "adapter_config.json")}
    opened.reopen = open_checkpoint
    return _chosen(opened, part)


def _chosen(opened: Checkpoint, part: str | None) -> Checkpoint:
    try:
        choose(opened, part)
    except BaseException:
        opened.close()
        raise
    return opened


def open_folder(uri: str | os.PathLike[str]) -> Folder:
    """The folder that `uri` names, on a local disk, behind an fsspec URL or on the Hub, to see what is in it."""
    folder, file = _locate(os.fspath(uri), None)
    if file is not None:
        raise UsageError("is a file, and a folder was expected", where=os.fspath(uri))
    return folder


def _in_memory(value: Any) -> Checkpoint:
    import torch

    if isinstance(value, torch.nn.Module):
        return MemoryCheckpoint.of_module(value)
    return MemoryCheckpoint.of_arrays(value)


def _locate(text: str, revision: str | None) -> tuple[Folder, str | None]:
    """The folder that `text` names, and the file within it if it names one."""
    if text.startswith("file://"):
        text = unquote(urlparse(text).path)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - it leaves an unknown ~user alone
    address = parse_hub(text, revision)
    on_hub = text.startswith("hf://")
    if on_hub and address is None:
        raise UsageError("is no address on the Hub", where=text, fix="write it as hf://org/name[@revision][/path]")
    if address is not None and (on_hub or not (_exists(path) or _FILE_SUFFIX.search(text))):
        return _locate_hub(address) if on_hub else _locate_hub_or_say(address, path)
    if revision is not None:
        raise UsageError("only models on the Hugging Face Hub have a revision", where=text, fix="leave it out")
    if _URL.match(text):
        return _locate_remote(text)
    return _locate_local(path, text)


def hub_model(name: str) -> HubAddress:
    """The model on the Hub that a name means which is no folder. `UnreadableError` where it is none, or a file's."""
    address = parse_hub(name, None)
    path = Path(name).expanduser()
    if not name.startswith("hf://") and _FILE_SUFFIX.search(name):
        beside = names_like(path)
        fix = f"check the path{beside}" if beside else "check the path"
        raise UnreadableError("no such file", where=name, fix=fix)
    if address is None:
        fix = f"give a folder, or a Hugging Face id as org/name{names_like(path)}"
        raise UnreadableError("no such folder", where=name, fix=fix)
    if looks_local(name) and not name.startswith("hf://") and cached_snapshot(address) is None:
        fix = f"check the path{names_like(path)}; a model on the Hub of that name is hf://{name}"
        raise UnreadableError("no such folder", where=name, fix=fix)
    return address


def looks_local(name: str) -> bool:
    """Whether a name that is nowhere on this machine means a place on it, and no `org/name` of the Hub.

    So it is where it begins as a path does, or the folder that it would lie in is there.
    """
    if _URL.match(name):
        return False
    path = Path(name)
    return path.is_absolute() or name.startswith((".", "~")) or (len(path.parts) > 1 and _exists(path.parent))


def _locate_hub_or_say(address: HubAddress, path: Path) -> tuple[Folder, str | None]:
    """As `_locate_hub`; where that fails, the error also says that no such local path exists, and what lies there."""
    try:
        return _locate_hub(address)
    except UnreadableError as error:
        beside = names_like(path)
        if not beside and "local path" in error.what:
            raise
        said = f"no local path {path} exists{beside}"
        fix = said if error.fix is None else f"{said}; if it is a model on the Hub, {error.fix}"
        raise type(error)(error.what, where=error.where, fix=fix) from error


def names_like(path: Path) -> str:
    """What lies in the folder of a path that does not exist, nearest names first; "" where there is no such folder."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if not one.name.startswith("."))
    except (OSError, ValueError):
        return ""
    if len(path.parts) < 2:
        return ""
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
    return f", and {path.parent} has {', '.join(near) or 'nothing'}{more}"


def _exists(path: Path) -> bool:
    # A path that may not be looked at exists as far as its error message is concerned.
    try:
        return path.exists()
    except (OSError, ValueError):
        return True


def _locate_local(path: Path, text: str) -> tuple[Folder, str | None]:
    try:
        is_folder = stat.S_ISDIR(os.stat(path if text else "").st_mode)  # noqa: PTH116 - "" is not "."
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableError(
            "no such file or folder",
            where=text or "''",
            fix="check the path; a model on the Hugging Face Hub is written org/name or hf://name",
        ) from error
    except (OSError, ValueError) as error:
        raise os_error(error, text) from error
    return (LocalFolder(path), None) if is_folder else (LocalFolder(path.parent), path.name)


def _locate_remote(url: str) -> tuple[Folder, str | None]:
    fs, path = filesystem(url)
    # A web server rarely lists folders, so an http address is a file unless it ends as a folder's.
    web = url.startswith(("http://", "https://"))
    if web and not url.endswith("/"):
        plain, mark, query = url.partition("?")
        parent, _, name = plain.rpartition("/")
        # A signed address keeps its signature.
        return UnlistedFolder(parent, name, lambda file: _web_file(fs, f"{parent}/{file}{mark}{query}")), name
    if not web and remote_info(fs, path, url)["type"] != "directory":
        parent, _, name = path.rpartition("/")
        return RemoteFolder(fs, parent, uri=url.rpartition("/")[0]), name
    return RemoteFolder(fs, path, uri=url), None


def _web_file(fs: Any, url: str) -> RemoteFile:
    return RemoteFile(fs, url, name=url.partition("?")[0])


def _locate_hub(address: HubAddress) -> tuple[Folder, str | None]:
    snapshot = cached_snapshot(address)
    if snapshot is not None:
        inner = snapshot / address.path
        found = _complete(inner, address, snapshot.name)
        if found is not None:
            return found
    if is_offline() and snapshot is not None:
        raise UnreadableError(
            "HF_HUB_OFFLINE is set and only a part of the model is in the local cache",
            where=str(address),
            fix="unset it, or download the whole model (hf download)",
        )
    folder = HubFolder(address)
    return folder, folder.enter(address.path)


def _complete(path: Path, address: HubAddress, commit: str) -> tuple[Folder, str | None] | None:
    """The cached folder or file at `path`, if all of its weights are there."""
    if path.is_file():
        return LocalFolder(path.parent, uri=str(address), revision=commit), path.name
    if not path.is_dir():
        return None
    folder = LocalFolder(path, uri=str(address), revision=commit)
    try:
        found = find_weights(folder)
    except UnreadableError:
        return None
    # An export in the cache does not mean that the model's own files are not on the Hub.
    return (folder, None) if found.format in ("safetensors", "torch", "gguf") or is_offline() else None


def _weights(folder: Folder, file: str | None) -> Weights:
    if file is None:
        return find_weights(folder)
    if file.endswith(".index.json"):
        return read_index(folder, file)
    return one_file(folder, file)


def _open_files(folder: Folder, weights: Weights, uri: str, part: str | None = None) -> TensorStore:
    config = _config(folder, strict=bool(weights.format))
    if weights.folder and (inner := folder.inner(weights.folder)) is not None:
        folder = inner
    if weights.format == "dcp":
        return DistributedCheckpoint(uri, folder, config=config, part=part)
    sources: list[ByteSource] = []
    try:
        sources += folder.sources(weights.files)
        kinds = _kinds(sources)
        kind = kinds.pop()
        if kinds:
            raise UnreadableError(f"its files have different formats: {kind}, {', '.join(kinds)}", where=uri)
        if kind == "gguf" and not weights.format:
            sources += (folder.source(n) for n in siblings(weights.files[0]) if n not in weights.files)
        places = dict(zip(weights.files, sources, strict=False))
        homes = {name: places[file] for name, file in weights.tensors.items()}
        own: dict[str, dict[str, Any]] = {
            "torch": {"part": part}, "onnx": {"folder": folder}, "safetensors": {"homes": homes},
        }  # fmt: skip
        maker = partial(_FORMATS[kind], uri, config=config, revision=folder.revision, **own.get(kind, {}))
        opened = _joined(folder, weights, sources, maker) if weights.ranks else maker(sources)
    except BaseException:
        for source in sources:
            source.close()
        raise
    opened.local = all(source.local for source in sources)
    if weights.beside:
        few = ", ".join(weights.beside[:5]) + (" …" if len(weights.beside) > 5 else "")
        opened.notes += (f"not read, for the model is in other files: {few}",)
    if weights.format and (modules := modules_beside(folder)):
        opened.notes += (f"not read, for it lies in a folder of its own: {', '.join(modules)} (modules.json)",)
    lost = sorted(weights.tensors.keys() - opened.tensors.keys())
    if lost:
        _log.warning("%s: %d tensors of the index are in no file: %s", uri, len(lost), ", ".join(lost[:5]))
    return opened


def _kinds(sources: Sequence[ByteSource]) -> set[str]:
    """The formats of some files."""
    if all(source.local for source in sources):
        return {sniff(source) for source in sources}
    with ThreadPoolExecutor(min(AT_ONCE, len(sources))) as pool:  # remote, each file is a round trip
        return set(pool.map(sniff, sources))


def _joined(
    folder: Folder, weights: Weights, sources: list[ByteSource], maker: Callable[[list[ByteSource]], TensorStore]
) -> TensorStore:
    from tailwise.checkpoints.formats.joined import JoinedCheckpoint, check_whole

    ranks = [maker([source]) for source in sources]
    if len(ranks) == 1:
        params = folder.json("params.json") if "params.json" in folder.names() else {}
        check_whole(ranks[0], params, weights.files)
        return ranks[0]
    return JoinedCheckpoint(ranks[0].uri, ranks, ranks[0].config)


def _config(folder: Folder, *, strict: bool) -> dict[str, Any] | None:
    """The folder's config.json; one beside a single file may belong to something else, so it may be wrong."""
    if "config.json" not in folder.names():
        return None
    return folder.json("config.json") if strict else _beside(folder, "config.json")


def _beside(folder: Folder, name: str) -> dict[str, Any] | None:
    """A file of settings that may belong to something else."""
    try:
        return folder.json(name)
    except UnreadableError as error:
        _log.warning("%s is left out: %s", name, error)
        return None


def is_adapter(uri: str | os.PathLike[str]) -> bool:
    """Whether `uri` is an adapter of peft, which can be read merged into its base."""
    return _is_adapter(*_locate(os.fspath(uri), None))


def _is_adapter(folder: Folder, file: str | None) -> bool:
    names = folder.names()
    if "adapter_config.json" not in names:
        return False
    return file in _ADAPTERS if file is not None else any(name in names for name in _ADAPTERS)


def _open_adapter(folder: Folder, file: str | None, base: str | None, mode: Literal["delta", "merged"]) -> Checkpoint:
    from tailwise.checkpoints.formats.peft import PeftCheckpoint

    settings = folder.json("adapter_config.json")
    if mode == "merged" and base is None:
        base = named_base(settings, folder.uri)
    name = file or next(name for name in _ADAPTERS if name in folder.names())
    adapter = _open_files(folder, Weights("", (name,)), folder.uri)
    adapter.reopen = open_checkpoint
    model = None if base is None else open_checkpoint(base)
    return cast("Checkpoint", PeftCheckpoint.open(adapter, settings, model, mode))


_COMPLEX = (
    "its entries are complex numbers, which are not measured; give real and imaginary parts as matrices of their own"
)


def choose(checkpoint: Checkpoint, part: str | None) -> None:
    """Narrow `checkpoint` to the tensors whose names begin with `part`, or leave averaged weights out.

    A format that keeps parts apart itself (`Checkpoint.chosen`) has done so already. `UsageError` with the parts that
    there are where none is of that name, `UnreadableError` where what is left has no values.
    """
    if part is None or checkpoint.chosen != part:
        _choose_flat(checkpoint, part)
    _check_values(checkpoint)
    complex_ones = [
        s.name for s in checkpoint.tensors.values() if len(s.shape) > 1 and s.dtype.startswith(("C64", "COMPLEX"))
    ]
    if complex_ones:
        checkpoint.unsupported = {**dict.fromkeys(complex_ones, _COMPLEX), **checkpoint.unsupported}


def _choose_flat(checkpoint: Checkpoint, part: str | None) -> None:
    names = list(checkpoint.tensors)
    if part is not None:
        kept = [name for name in names if name.startswith(f"{part}.")]
        if not kept:
            known = {*checkpoint.parts, *(name.partition(".")[0] for name in names if "." in name)}
            raise unknown_name("part", part, known)
        checkpoint.chosen = part
        _keep(checkpoint, kept)
        return
    averages = averaged_prefixes(names)
    if averages:
        checkpoint.parts = tuple(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
        said = f"took the weights and left out their moving average, {', '.join(averages)}"
        checkpoint.notes += (f"{said} (--part {averages[0]} reads it)",)
        _keep(checkpoint, [name for name in names if name.partition(".")[0] not in averages])


def _keep(checkpoint: Checkpoint, names: list[str]) -> None:
    checkpoint.tensors = {name: checkpoint.tensors[name] for name in names}
    kept = checkpoint.tensors
    checkpoint.shared = {a: b for a, b in checkpoint.shared.items() if a in kept and b in kept}


def _check_values(checkpoint: Checkpoint) -> None:
    """Refuse what ZeRO-3 leaves in the place of weights: tensors of the right names without entries."""
    empty = [spec.name for spec in checkpoint.tensors.values() if 0 in spec.shape]
    if empty and not any(len(spec.shape) > 1 and spec.numel for spec in checkpoint.tensors.values()):
        raise UnreadableError(
            f"{len(empty)} of its {len(checkpoint.tensors)} tensors are empty and none is a matrix: "
            "DeepSpeed's ZeRO-3 keeps the weights in other files",
            where=checkpoint.uri,
            fix="join them with zero_to_fp32.py, which lies in the checkpoint's folder: "
            "python zero_to_fp32.py FOLDER OUTPUT --safe_serialization; then give OUTPUT",
        )
    if len(empty) > 1:
        checkpoint.notes += (
            f"{len(empty)} tensors are empty, as ZeRO-3 leaves those that it did not gather: {', '.join(empty[:3])}…",
        )
