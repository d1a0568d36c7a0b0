"""Files that hold one rank's part of a model: known by their names, joined where the axis is known, else refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tailwise.checkpoints.bytesource import Folder
from tailwise.core.errors import UnreadableError

_ZERO3 = "join them with DeepSpeed's own script: python zero_to_fp32.py FOLDER OUTPUT --safe_serialization"
_UNIVERSAL = "merge the parts with DeepSpeed's ds_to_universal.py, or with the exporter of the program that trained"
_PIPELINE = f"it is a layer of a pipeline: {_UNIVERSAL}"
_EXPERTS = (
    "the experts lie in files of their own, beside mp_rank_00_model_states.pt: load the model with DeepSpeed and save "
    "its state dict, or use the exporter of the program that trained it"
)
_PARAMETERS = "give its weights as one file: {key: torch.load(file)['param'] for each zero/KEY/fp32.pt}, by torch.save"
_MEGATRON = "convert it with Megatron-LM's tools/checkpoint/convert.py (or NeMo's exporter) to one rank or Hugging Face"

#: (name with the rank and, where it says so, the number of ranks; what joins them). The first match counts.
_NAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), fix)
    for pattern, fix in (
        (r"consolidated\.(?P<rank>\d\d)\.(?:pth|pt|safetensors)", ""),
        (r"zero_pp_rank_(?P<rank>\d+)_mp_rank_\d+_model_states\.pt", _ZERO3),
        (r"(?:bf16_)?zero_pp_rank_(?P<rank>\d+)_mp_rank_\d+_optim_states\.pt", _ZERO3),
        (r"mp_rank_(?P<rank>\d+)_model_states\.pt", _UNIVERSAL),
        (r"layer_\d+-model_(?P<rank>\d+)-model_states\.pt", _PIPELINE),
        (r"layer_\d+_expert_(?P<rank>\d+)_mp_rank_\d+_model_states\.pt", _EXPERTS),
        (r"model_world_size_(?P<ranks>\d+)_rank_(?P<rank>\d+)\.pt",
         "merge them: python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUTPUT"),
        (r"(?:pytorch_model|model|optimizer)_fsdp_rank_?(?P<rank>\d+)\.(?:bin|pt)",
         "save with FSDP's FULL_STATE_DICT or SHARDED_STATE_DICT in place of LOCAL_STATE_DICT"),
        (r"model-rank-(?P<rank>\d+)-part-\d+\.safetensors", "give the model that vLLM's sharded state was made of"),
        (r"rank(?P<rank>\d+)\.safetensors", "give the model that TensorRT-LLM's engine was made of"),
    )
)  # fmt: skip
#: A folder of one rank's files: Megatron-LM's mp_rank_01, mp_rank_01_000.
RANK_FOLDER = re.compile(r"(?:mp|tp)_rank_(?P<rank>\d+)(?:_\d+)*")


@dataclass(frozen=True)
class RankFile:
    """What a file's name says of the rank that wrote it."""

    rank: int
    ranks: int | None  # how many there are, where the name says so
    fix: str  # what joins the parts; empty for the names that are joined here

    @property
    def whole(self) -> bool:
        """Whether the name alone says that this is the whole model, or may be."""
        if self.fix in (_ZERO3, _PIPELINE, _EXPERTS):
            return False  # placeholders even on the only rank; one layer or expert even of the only rank
        return self.rank == 0 and self.ranks in (None, 1)


def rank_of(name: str) -> RankFile | None:
    """What the name of a file says of its rank, or None where it is no rank's."""
    for pattern, fix in _NAMES:
        if match := pattern.fullmatch(name):
            ranks = match.groupdict().get("ranks")
            return RankFile(int(match["rank"]), int(ranks) if ranks else None, fix)
    return None


def rank_files(names: Iterable[str]) -> dict[str, RankFile]:
    """Those of `names` that a rank wrote."""
    return {name: rank for name in sorted(names) if (rank := rank_of(name)) is not None}


def files_of_ranks(chosen: Collection[str], names: Collection[str], uri: str) -> tuple[str, ...] | None:
    """The files that are to be joined to make a model of `chosen`, or None where no rank wrote it.

    `names` are all files of the folder. `UnreadableError` where one rank's part would be read as a model.
    """
    by_name = rank_files(chosen)
    if not by_name:
        return None
    if any(not item.fix for item in by_name.values()):
        return _consolidated(names, uri)
    experts = {name: item for name, item in rank_files(names).items() if item.fix == _EXPERTS}
    if experts and any(item.fix in (_EXPERTS, _UNIVERSAL) for item in by_name.values()):
        listed = ", ".join(list(experts)[:4])
        raise UnreadableError(f"belongs to a DeepSpeed model whose experts lie in {len(experts)} files: {listed}",
                              where=uri, fix=_EXPERTS)  # fmt: skip
    beside = {name: item for name, item in rank_files(names).items() if item.fix in {i.fix for i in by_name.values()}}
    ranks = {item.rank for item in beside.values()}
    if len(ranks) < 2 and all(item.whole for item in by_name.values()):
        return None
    one = next(iter(by_name.values()))
    count = one.ranks or len(ranks)
    what = f"is one rank's part of a model (rank {one.rank} of {count})" if len(by_name) == 1 else (
        f"holds one model in {len(by_name)} parts, which cannot be joined here: {', '.join(list(by_name)[:4])}"
    )  # fmt: skip
    raise UnreadableError(what, where=uri, fix=one.fix)


def _consolidated(names: Collection[str], uri: str) -> tuple[str, ...]:
    """All of Meta's `consolidated.NN` files, which must be there from 00 on."""
    files = [name for name, item in rank_files(names).items() if not item.fix]
    suffix = files[0].rpartition(".")[2]
    files = [name for name in files if name.endswith(suffix)]
    ranks = [item.rank for item in rank_files(files).values()]
    missing = sorted(set(range(max(ranks) + 1)) - set(ranks))
    if missing:
        lost = ", ".join(f"consolidated.{rank:02d}.{suffix}" for rank in missing)
        raise UnreadableError(
            f"is one rank's part of a model, and of the others there is missing {lost}",
            where=uri,
            fix="download all of consolidated.*, into one folder",
        )
    return tuple(files)


def check_rank_folder(folder: Folder) -> None:
    """Refuse a folder that Megatron-LM wrote for one rank of several."""
    match = RANK_FOLDER.fullmatch(folder.name)
    if match is None:
        return
    ranks = sorted(other for other in {*folder.beside(), folder.name} if RANK_FOLDER.fullmatch(other))
    if len(ranks) > 1 or int(match["rank"]) > 0:
        raise UnreadableError(
            f"is one rank's part of a model: {', '.join(ranks[:8])} hold the whole",
            where=folder.uri,
            fix=_MEGATRON,
        )


def refuse_universal(folder: Folder) -> None:
    """Refuse DeepSpeed's universal checkpoint, which keeps each parameter in a folder with its moments."""
    zero = folder if folder.name == "zero" else folder.inner("zero") if "zero" in folder.subfolders() else None
    first = None if zero is None else min(zero.subfolders(), default=None)
    one = folder if zero is None or first is None else zero.inner(first)
    if one is None or not {"fp32.pt", "exp_avg.pt"} <= one.names():
        return
    raise UnreadableError(
        "is a universal checkpoint of DeepSpeed: each parameter lies in a folder of its own, beside its moments",
        where=folder.uri,
        fix=_PARAMETERS,
    )


def refuse_rank_folders(folder: Folder) -> None:
    """Refuse a folder of several ranks' folders."""
    ranks = sorted(name for name in folder.subfolders() if RANK_FOLDER.fullmatch(name))
    if len(ranks) > 1:
        raise UnreadableError(
            f"holds {len(ranks)} ranks' parts of a model, which cannot be joined here: {', '.join(ranks[:8])}",
            where=folder.uri,
            fix=_MEGATRON,
        )
