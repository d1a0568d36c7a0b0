"""Which files of a folder are the model's weights, and which names in a file: not a trainer's, not an average's."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tailwise.checkpoints.bytesource import Folder
from tailwise.checkpoints.foreign import folder_of
from tailwise.checkpoints.rank_files import (
    check_rank_folder,
    files_of_ranks,
    rank_files,
    refuse_rank_folders,
    refuse_universal,
)
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of

METADATA = ".metadata"  # of a checkpoint of torch.distributed
#: Names that libraries give a model's weights, first choice first.
_STEMS = {
    "safetensors": ("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors"),
    "torch": (
        "pytorch_model.bin",
        "diffusion_pytorch_model.bin",
        "adapter_model.bin",
        "model.pt",
        "model.pth",
    ),
    "gguf": (),
    "onnx": ("model.onnx",),
    "keras": ("model.keras", "tf_model.h5", "model.weights.h5", "model.h5"),
    "numpy": (),
}
_SUFFIXES = {
    "safetensors": (".safetensors",),
    "torch": (".bin", ".pt", ".pth", ".ckpt"),
    "gguf": (".gguf",),
    "onnx": (".onnx",),
    "keras": (".keras", ".h5", ".hdf5"),
    "numpy": (".npz", ".npy"),
}
_SHARD = re.compile(r"(.*)-(\d{3,})-of-(\d{3,})(\..*)")
_VARIANT = re.compile(r"(.+)\.[\w-]+(\.(?:safetensors|bin))")
#: Folders that hold the model of the folder above: FSDP's SHARDED_STATE_DICT, Megatron's only rank.
_SHARDED = re.compile(r"(?:pytorch_model|model)_fsdp_0|mp_rank_00(?:_000)?")
#: Modules of sentence-transformers that hold no matrix.
_WITHOUT_WEIGHTS = frozenset({"Transformer", "Pooling", "Normalize", "Dropout", "LayerNorm"})
_TRAINING = re.compile(r"checkpoint-\d+|iter_\d+|(?:global_)?step[-_]?\d+|epoch[=_-]?\d+.*")


@dataclass(frozen=True)
class Weights:
    """The files that make one model, and the index they came from."""

    format: str
    files: tuple[str, ...]
    tensors: Mapping[str, str] = field(default_factory=dict)  # that an index promises, with the file of each
    beside: tuple[str, ...] = ()  # files of the same format that are not of it
    folder: str = ""  # within the one that was given, where they lie in one
    ranks: bool = False  # whether each file is one rank's part of all matrices


def find_weights(folder: Folder) -> Weights:
    """The weights of `folder`: safetensors before PyTorch's files before GGUF."""
    names = folder.names()
    check_rank_folder(folder)
    refuse_rank_folders(folder)
    refuse_universal(folder)
    if METADATA in names:
        return Weights("dcp", (METADATA,))
    for kind in _SUFFIXES:
        index = _index(kind, names, folder)
        if index is not None:
            weights = read_index(folder, index)
            return replace(weights, beside=_beside(kind, names, weights.files))
        files = _files(kind, names, folder)
        if files:
            ranks = files_of_ranks(files, names, folder.uri) is not None
            return Weights(kind, files, beside=_beside(kind, names, files), ranks=ranks)
    for name in sorted(folder.subfolders()):
        if _SHARDED.fullmatch(name) and (inner := folder.inner(name)) is not None:
            return replace(find_weights(inner), folder=name)
    raise _nothing(folder)


def modules_beside(folder: Folder) -> list[str]:
    """Folders with layers of their own that follow the model, as sentence-transformers' `2_Dense`, in their order."""
    if "modules.json" not in folder.names():
        return []
    try:
        source = folder.settings("modules.json")
        try:
            listed = json_of(source.read(0, min(source.size, 1 << 20)))
        finally:
            source.close()
    except (ValueError, RecursionError, UnreadableError):
        return []  # the weights that were found are whole without it
    entries = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    named = ((item.get("path"), str(item.get("type")).rpartition(".")[2]) for item in entries)
    known = folder.subfolders()
    return [path for path, kind in named if isinstance(path, str) and path in known and kind not in _WITHOUT_WEIGHTS]


def one_file(folder: Folder, file: str) -> Weights:
    """The weights in `file`, with the files that must be joined to it."""
    check_rank_folder(folder)
    if file == METADATA or file.endswith(".distcp"):
        return Weights("dcp", (METADATA,))
    if rank_files([file]):
        refuse_universal(folder)
    joined = files_of_ranks([file], folder.names(), f"{folder.uri.rstrip('/')}/{file}")
    return Weights("", joined or (file,), ranks=joined is not None)


def read_index(folder: Folder, index: str) -> Weights:
    """The shards that an index file names; all must be there."""
    where = f"{folder.uri.rstrip('/')}/{index}"
    weight_map = folder.json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise UnreadableError("has no weight_map from tensors to files", where=where, fix="download the index again")
    files = tuple(sorted(set(weight_map.values())))
    _check_all(files, folder, f"shards named by {index}")
    kind = "safetensors" if files[0].endswith(".safetensors") else "torch"
    return Weights(kind, files, weight_map)


def _index(kind: str, names: frozenset[str], folder: Folder) -> str | None:
    indexes = sorted(n for n in names if n.endswith(tuple(f"{s}.index.json" for s in _SUFFIXES[kind])))
    for stem in _STEMS[kind]:
        if f"{stem}.index.json" in indexes:
            return f"{stem}.index.json"
    if len(indexes) > 1:
        raise _which("several indexes", indexes, folder)
    return indexes[0] if indexes else None


def _candidates(kind: str, names: frozenset[str]) -> list[str]:
    """Files that could be the model's weights: other precisions of a file, and its publisher's copy, are left out."""
    candidates = sorted(n for n in names if n.endswith(_SUFFIXES[kind]) and not is_side_file(n))
    # OpenVINO keeps the graph beside its weights, which have no names.
    candidates = [name for name in candidates if f"{name[:-4]}.xml" not in names]
    candidates = [name for name in candidates if not _is_variant(name, candidates)]
    # Mistral's folders hold the model twice, the second time in the publisher's own naming.
    return [n for n in candidates if not n.startswith("consolidated")] or candidates


def _beside(kind: str, names: frozenset[str], files: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in _candidates(kind, names) if name not in files)


def _files(kind: str, names: frozenset[str], folder: Folder) -> tuple[str, ...]:
    files = _candidates(kind, names)
    if files and rank_files(files).keys() == {*files}:
        return files_of_ranks(files, names, folder.uri) or tuple(files)
    shards = [name for name in files if _SHARD.fullmatch(name)]
    if shards:
        return _whole_shards(shards, folder)
    if len(files) < 2 or (kind == "safetensors" and _is_numbered(files)):
        return tuple(files)
    for stem in _STEMS[kind]:
        if stem in files:
            return (stem,)
    raise _which("several models", files, folder)


def _is_numbered(names: list[str]) -> bool:
    """Whether the names are one name with numbers, as pieces of a model have them."""
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1


def _is_variant(name: str, names: list[str]) -> bool:
    """Whether `name` is another precision of a file beside it: `model.fp16.safetensors`."""
    match = _VARIANT.fullmatch(name)
    return match is not None and match[1] + match[2] in names


def _whole_shards(shards: list[str], folder: Folder) -> tuple[str, ...]:
    if len({tuple(_SHARD.sub(r"\1 \3\4", name).split()) for name in shards}) > 1:
        raise _which("several models in shards", shards, folder)
    _check_all(_siblings(shards), folder, "shards")
    return tuple(shards)


def _siblings(names: Iterable[str]) -> list[str]:
    """Every shard that the names of `names` promise: `-00001-of-00003` promises three."""
    promised: dict[str, None] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        # A count that no model has is a name that only looks like a shard's.
        if match and int(match[3]) <= 10_000:
            first = 0 if int(match[2]) == 0 else 1
            for number in range(first, int(match[3]) + first):
                promised[f"{match[1]}-{number:0{len(match[2])}d}-of-{match[3]}{match[4]}"] = None
    return list(promised)


def siblings(name: str) -> list[str]:
    """The shards that make one model with `name`, itself included; only itself when it is no shard."""
    return _siblings([name]) or [name]


def _check_all(files: Iterable[str], folder: Folder, what: str) -> None:
    missing = sorted(set(files) - folder.names())
    if not folder.listed:
        missing = [name for name in missing if "/" in name]
    if missing:
        raise UnreadableError(
            f"{len(missing)} of the {what} are missing: {', '.join(missing)}",
            where=folder.uri,
            fix="download them, or the model again",
        )


def _which(what: str, names: list[str], folder: Folder) -> UsageError:
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    base = folder.uri.rstrip("/")
    fix = f"give one of them, as in {base}/{names[0]}"
    return UsageError(f"the folder holds {what}: {listed}", where=folder.uri, fix=fix)


def _nothing(folder: Folder) -> UnreadableError | UsageError:
    subfolders = sorted(folder.subfolders())
    training = [name for name in subfolders if _TRAINING.fullmatch(name)]
    if training:
        one = f"{folder.uri.rstrip('/')}/{training[-1]}"
        return UsageError(
            f"holds training checkpoints and no final model: {', '.join(training)}",
            where=folder.uri,
            fix=f"give one of them, as in {one}; or audit all: `tailwise audit FOLDER --all-checkpoints`",
        )
    if "model_index.json" in folder.names():
        return UsageError(
            f"is a diffusers pipeline of several models: {', '.join(subfolders)}",
            where=folder.uri,
            fix="give the folder of one of them",
        )
    known = folder_of(folder.names(), folder.subfolders())
    if known is not None:
        return UnreadableError(known[0], where=folder.uri, fix=known[1])
    looked = ", ".join(f"*{suffix}" for suffixes in _SUFFIXES.values() for suffix in suffixes)
    what = "is an empty folder" if not folder.names() and not subfolders else "holds no weights"
    inside = f"; it has the folders {', '.join(subfolders[:12])}" if subfolders else ""
    return UnreadableError(
        f"{what}: looked for {looked} and their index.json{inside}", where=folder.uri, fix="check the path"
    )


def is_side_file(name: str) -> bool:
    """Whether a file in a model's folder is a trainer's (optimizer, arguments, …) and not the weights."""
    stem = os.path.basename(name).split(".")[0]  # noqa: PTH119 - a name in a folder that may be remote
    starts = ("optimizer", "scheduler", "training_args", "rng_state", "scaler", "trainer_state")
    return "_optim_states" in stem or stem.startswith(starts)


_AVERAGE = re.compile(
    r"(?:\w+_)?ema(?:_\w+)?|(?:model|module|params|weights|net|state_dict)?_?averaged?(?:_(?:model|weights|params))?"
    r"|swa_(?:model|state_dict)|shadow(?:_params)?"
)
#: The moving average of a network → the network, where both are there.
_FOLLOWERS = {"teacher": "student", "target_encoder": "encoder", "key_encoder": "query_encoder"}
_ALIKE = 0.5  # of an average's names that the weights must match before the flat prefix of another word counts


def is_average(key: str, beside: Collection[str]) -> bool:
    """Whether `key` names averaged weights (`model_ema`, `g_ema`, `params_ema`), given the keys beside it."""
    return _AVERAGE.fullmatch(key) is not None or _FOLLOWERS.get(key) in beside


def averaged_prefixes(names: Iterable[str]) -> list[str]:
    """First segments of flat names that hold averaged weights of what stands beside them.

    `model_ema.…` of CompVis' diffusion models is one, beside `model.…`.
    """
    names = list(names)
    sizes = Counter(name.partition(".")[0] for name in names if "." in name)
    prefixes = [key for key in sizes if key and _AVERAGE.fullmatch(key)]
    prefixes += [key for key, of in _FOLLOWERS.items() if key in sizes and _alike(names, key, of)]
    plain = len(names) - sum(sizes[key] for key in prefixes)
    return [key for key in prefixes if plain >= _ALIKE * sizes[key]]


def _alike(names: Iterable[str], average: str, weights: str) -> bool:
    """Whether the names below one prefix are, half of them or more, those below the other."""
    below: dict[str, set[str]] = {average: set(), weights: set()}
    for name in names:
        first, _, rest = name.partition(".")
        if first in below:
            below[first].add(rest)
    return len(below[average] & below[weights]) >= _ALIKE * len(below[average])
