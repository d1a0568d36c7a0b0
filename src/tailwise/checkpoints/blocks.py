"""One number per block, counted from the data: the second look at names, when all of them are known.

A *container* is a module whose children are numbered (`model.encoder.layers`). Its children are blocks where they
have modules of their own and the container bears a name for such (`layers`, `blocks`, `h`, `blk`, …), or where two
children repeat the same names. A list of projections, the steps of a feed-forward network, experts and heads are no
blocks, wherever they stand. The outermost container of blocks on a tensor's path counts. Where a checkpoint has none
at all (an MLP, VGG), the numbered layers themselves are its blocks.

Containers are numbered one after the other in the order of the data, so that a number names one block: vision and
audio towers, encoders, all others (decoders and language models); within a model down, middle, up, and dual streams
before single ones. Within a container numbered once the name's own number is kept, so a part of a model has the
numbers of the whole. Where blocks are numbered by stage and layer (`layer2.0`, `stages.1.layers.0`), the index runs
over the stages; what belongs to a stage as a whole goes to its first block, or to its last where the first stage has
it too and so it stands at the end (`downsamplers`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tailwise.checkpoints.orientation import natural

#: Names of containers whose children are blocks even if there is only one of them.
_KNOWN = re.compile(
    r"(?:\w*_)?(?:layers?|blocks?|stages?|levels|refiners?|resblocks|encoders|units|groups)|h|blk|features|conformers?|"
    r"encoderblock|denseblock|denselayer|convnext|down|up|self_attends|resnets|attentions|ffns|s|b"
)
#: Those that hold whole transformers, of which a container without such a name may hold several.
_STRONG = frozenset({"layers", "layer", "h", "blocks", "transformer_blocks", "resblocks", "blk"})
#: Containers of stages, and what the blocks of a stage are called.
_STAGES = re.compile(r"(?:\w*_)?stages?|levels|down_blocks|up_blocks|\w*layer_groups|denseblock|down|up|s")
_OF_STAGE = frozenset(
    {
        *("layers", "layer", "blocks", "block", "b", "resnets", "attentions", "attn", "albert_layers", "denselayer"),
        *("motion_modules", "temp_attentions", "temp_convs", "res_blocks", "attention_blocks"),
        *("base_resnets", "ctrl_resnets", "base_attentions", "ctrl_attentions"),
    }
)
#: Numbered, but no blocks: lists of things of one kind inside a block or beside them.
_LISTS = re.compile(
    r"\w*experts|\w*heads?|\w*mlps?|\w*proj(?:s|ects?|ections?|ectors?)?|\w*embed\w*|\w*embs?|net|ffs?|to_\w+|\w*classifiers?|"
    r"\w*codebooks?|altup\w*|\w*adapters?(?:_\w+)?|\w*convs?\d?(?:_layers?|_blocks?)?|\w*norms?\d?|"
    r"\w*lateral\w*|lstm|gru|rnn|fc\w*|\w*gates?|\w*predictors?|\w*hypernetworks\w*|projection_layers|scale_layers|"
    r"resize_layers|match_assignment_layers|token_confidence|readout\w*|fusion_layers|\w*bias\w*|branch\w*|"
    r"\w*connections?"
)
#: Modules none of whose parts are blocks of the model.
_BESIDE = re.compile(
    r"\w*projector|\w*merger\w*|\w*connector|mm|\w*resampler|\w*quantiz\w*|\w*quantis\w*|vq|\w*adapter|fpn|"
    r"context_embedder|txt_in|\w*subsampl\w*|pos_conv_embed|patch_embed\w*|\w*downsampler|distilled_guidance_layer|time_\w*embed\w*"
)
_HEADS = re.compile(r"\w*classifiers?|\w*heads?|pooler|branch\w*|label_emb|lm_heads?")
#: Lists of one parent whose members of one number make one block.
_TOGETHER = frozenset({"attentions", "ffns", "resnets", "res_blocks", "attention_blocks"})
_MIDDLE = frozenset({"mid_block", "middle_block", "mid"})
_NUMBERED = re.compile(
    r"(layers?|stages?|blocks?|denseblock|denselayer|encoder_layer|encoderblock|transformer_(?:layer|block)|h|s|b)_?(\d+)"
    r"|block\d+-(\d+)"
)
#: What stands after a module's name and is no module.
_WEIGHT = re.compile(
    r"weight\w*|bias\w*|kernel|gamma|beta|scales?|parametrizations|running_\w+|num_batches_tracked|alpha"
)
_PART = re.compile(r"(?:#|\[).*$")

_FIRST = re.compile(r"(?:^|[._])(?:vision|visual|image|audio|v|a|feature_extractor)(?=[._]|\d|$)|vision")
_ENCODER_OR_DECODER = re.compile(r"(?:^|[._])(?:(encoder|enc)|decoder|dec)(?=[._]|$)")
#: Whole models in one file, in the order in which data passes them; the empty place is for any other.
_MODELS = (
    r"(?:^|\.)(?:cond_stage_model|conditioner|text_encoders)(?=\.|$)",
    "",
    r"(?:^|\.)(?:talker|t2u_model)(?=\.|$)",
    r"(?:^|[._])(?:depth_decoder|code_predictor)(?=\.|$)",
    r"(?:^|\.)(?:first_stage_model|vae|\w*code2wav|\w*token2wav|vocoder)(?=\.|$)",
    r"(?:^|\.)(?:mtp|nextn)(?=[._]|$)",
)
#: Siblings within a model, in the order in which data passes them.
_FLOW = (
    r"\w*refiner|pre\w*|prior\w*|pos_net|initial\w*|reassemble\w*|semantic|\w*backbone|\w*text_transformer_blocks|"
    r"\w+_in|stem",
    r"down\w*|input_blocks|\w*encoder(?:_(?!blocks|layers)\w+)?",
    "",
    r"\w*cross\w*",
    r"mid|mid_\w+|middle_block|decoder_transformer",
    r"up\w*|output_blocks|\w+_out|\w*decoder(?:_(?!blocks|layers)\w+)?",
    r"single_\w+|post\w*|\w*postnet|final\w*|global_transformer|dit|decoder_blocks|last_layers",
    r"neck|head|heads|\w*_head",
)
_MIDDLE_FLOW = 4

_Place = tuple[int, ...]


def number_blocks(names: Iterable[str]) -> Mapping[str, int]:
    """Name → block index, for the names that sit in a block."""
    # Experts lie inside their block: hundreds of names, one place.
    short = {name: name.partition(".experts.")[0] for name in names}
    split = {name: _components(name) for name in dict.fromkeys(short.values())}
    containers = _Containers(split.values())
    places = {name: place for name, parts in split.items() if (place := containers.place(parts)) is not None}
    stacks: dict[str, set[_Place]] = {}
    for stack, inside in places.values():
        stacks.setdefault(stack, set()).add(inside)
    first: dict[tuple[str, _Place], int] = {}
    offset = 0
    for stack in sorted(stacks, key=_rank):
        offset = _number_stack(stack, stacks[stack], offset, first)
    numbers = {name: first[place] for name, place in places.items()}
    return {name: numbers[cut] for name, cut in short.items() if cut in numbers}


def _components(name: str) -> tuple[str, ...]:
    """The path of a name, numbers apart: `layer2.0.conv1.weight` is layer, 2, 0, conv1, weight."""
    if "#" in name or "[" in name or "/" in name:
        name = _PART.sub("", name).replace("/", ".")
    parts: list[str] = []
    for part in name.split("."):
        parts += _parted(part)
    return tuple(parts)


@lru_cache(maxsize=8192)
def _parted(part: str) -> tuple[str, ...]:
    match = _NUMBERED.fullmatch(part)
    return (match[1] or "block", match[2] or match[3]) if match else (part,)


@lru_cache(maxsize=8192)
def _is_module(part: str) -> bool:
    return _WEIGHT.fullmatch(part) is None


@dataclass
class _Container:
    """A module with numbered children."""

    path: tuple[str, ...]
    children: dict[int, set[str]] = field(default_factory=dict)  # number → names below it; none below a leaf

    @property
    def name(self) -> str:
        return self.path[-1] if self.path else ""

    @property
    def has_modules(self) -> bool:
        """Whether any child has modules of its own."""
        return any(self.children.values())

    @property
    def repeats(self) -> bool:
        """Whether two children have the same names below them."""
        seen: set[frozenset[str]] = set()
        for below in self.children.values():
            key = frozenset(below)
            if key and key in seen and not all(part.isdecimal() for part in key):
                return True
            seen.add(key)
        return False


class _Containers:
    """Every container of a checkpoint, and which of them hold blocks."""

    def __init__(self, paths: Iterable[tuple[str, ...]]) -> None:
        self._all: dict[tuple[str, ...], _Container] = {}
        listed = tuple(paths)
        for parts in listed:
            self._add(parts)
        # What holds whole transformers is no block, whatever it is called: `text_encoders.0.layers.5`.
        whole = [path for path, one in self._all.items() if path and path[-1] in _STRONG and len(one.children) > 1]
        self._around = {path[:end] for path in whole for end in range(len(path))}
        self._blocks: dict[tuple[str, ...], bool] = {}
        self._staged: dict[tuple[str, ...], bool] = {}
        self._stacks: dict[tuple[str, ...], str] = {}
        self._any = any(self._of_blocks(path) for path in self._all) or any(_middle(parts) for parts in listed)

    def place(self, parts: tuple[str, ...]) -> tuple[str, _Place] | None:
        """(stack, place in the stack) of a tensor, or None."""
        at = next((at for at, part in enumerate(parts) if part.isdecimal() and self._of_blocks(parts[:at])), None)
        middle = _middle(parts)
        if middle and (at is None or middle <= at):
            return ".".join(parts[:middle]), (0,)
        if at is None:
            return None if self._any else _leaf(parts)
        return self._stack(parts[:at]), self._within(parts, at)

    def _stack(self, path: tuple[str, ...]) -> str:
        known = self._stacks.get(path)
        if known is None:
            known = ".".join((*path[:-1], "blocks") if path and path[-1] in _TOGETHER else path)
            self._stacks[path] = known
        return known

    def _add(self, parts: tuple[str, ...]) -> None:
        for at in _numbers(parts):
            path = parts[:at]
            container = self._all.get(path)
            if container is None:
                container = self._all[path] = _Container(path)
            below = container.children.setdefault(int(parts[at]), set())
            if at + 1 < len(parts) and _is_module(parts[at + 1]):
                below.add(parts[at + 1])

    def _of_blocks(self, path: tuple[str, ...]) -> bool:
        known = self._blocks.get(path)
        if known is None:
            known = self._blocks[path] = self._decide(path)
        return known

    def _decide(self, path: tuple[str, ...]) -> bool:
        container = self._all[path]
        if _LISTS.fullmatch(container.name) or any(_BESIDE.fullmatch(part) for part in path):
            return False
        if not container.has_modules or _KNOWN.fullmatch(container.name):
            return container.has_modules
        return bool(path) and path not in self._around and container.repeats

    def _within(self, parts: tuple[str, ...], at: int) -> _Place:
        """The place of a tensor in its container: the number, and within stages the block of the stage."""
        path, number = parts[:at], int(parts[at])
        if not self._is_staged(path):
            return (number,)
        inner = _inner(parts, at)
        if inner is not None and self._is_stage_of_blocks(path, parts, inner):
            return number, int(parts[inner])
        return number, self._edge(path, number, parts[at + 1] if at + 1 < len(parts) else "")

    def _is_stage_of_blocks(self, path: tuple[str, ...], parts: tuple[str, ...], inner: int) -> bool:
        """Whether the container at `inner` holds the blocks of the stage, and not steps of one of its parts."""
        container = self._all[parts[:inner]]
        return parts[inner - 1] in _OF_STAGE or _STAGES.fullmatch(path[-1]) is not None or container.has_modules

    def _is_staged(self, path: tuple[str, ...]) -> bool:
        known = self._staged.get(path)
        if known is None:
            known = self._staged[path] = self._decide_staged(path)
        return known

    def _decide_staged(self, path: tuple[str, ...]) -> bool:
        """By name, or where the containers inside one child repeat the same names (a T5 block's layers do not)."""
        container = self._all[path]
        inner = [
            self._all[deep]
            for number, below in container.children.items()
            for name in ({*below} & {*_OF_STAGE, "0"}) | {part for part in below if part.isdecimal()}
            for deep in [(*path, str(number)) if name.isdecimal() else (*path, str(number), name)]
            if deep in self._all
        ]
        if not inner:
            return False
        by_name = _STAGES.fullmatch(container.name) or (container.name == "layer" and _one_by_one(inner, path))
        return bool(by_name) or any(one.repeats for one in inner)

    def _edge(self, path: tuple[str, ...], number: int, name: str) -> int:
        """Index of the block of a stage that what belongs to the whole stage goes to."""
        children = self._all[path].children
        stages = sorted(children, reverse=path[-1].startswith("up") and "decoder" in path)
        inside = sorted(
            int(child)
            for below in children[number]
            for deep in [(*path, str(number)) if below.isdecimal() else (*path, str(number), below)]
            if deep in self._all and (below.isdecimal() or below in _OF_STAGE)
            for child in self._all[deep].children
        )
        at_end = name.startswith(("down", "up")) and name in children[stages[0]]
        return (inside[-1] if at_end else inside[0]) if inside else 0


def _one_by_one(inner: Sequence[_Container], path: tuple[str, ...]) -> bool:
    """`layer2.0`, and not `layer.2.layer.0`."""
    return any(len(one.path) == len(path) + 1 for one in inner)


def _numbers(parts: tuple[str, ...]) -> list[int]:
    return [at for at, part in enumerate(parts) if part.isdecimal()]


def _inner(parts: tuple[str, ...], at: int) -> int | None:
    """Where the number of the block within the stage stands: straight after the stage's, or after one name."""
    for inner in (at + 1, at + 2):
        if inner < len(parts) and parts[inner].isdecimal() and (inner == at + 1 or parts[at + 1] in _OF_STAGE):
            return inner
    return None


def _middle(parts: tuple[str, ...]) -> int | None:
    """Length of the path of the middle block of a UNet or an autoencoder that the tensor sits in, or None."""
    if _MIDDLE.isdisjoint(parts):
        return None
    for at, part in enumerate(parts[:-1]):
        if part in _MIDDLE and (part != "mid" or parts[at + 1].startswith(("block", "attn"))):
            return at + 1
    return None


def _leaf(parts: tuple[str, ...]) -> tuple[str, _Place] | None:
    """The place of a numbered layer in a checkpoint without containers of blocks."""
    at = next((at for at in _numbers(parts) if not any(_out(part) for part in parts[:at])), None)
    return None if at is None else (".".join(parts[:at]), (int(parts[at]),))


def _out(part: str) -> bool:
    return _BESIDE.fullmatch(part) is not None or _HEADS.fullmatch(part) is not None


def _number_stack(stack: str, places: set[_Place], offset: int, into: dict[tuple[str, _Place], int]) -> int:
    """Number the blocks of one stack from `offset`, and return the next free number."""
    # The autoencoders of Stable Diffusion count the stages of the decoder from the image.
    backwards = stack.endswith(("decoder.up", "decoder.up_temporal"))
    ordered = sorted(places, key=lambda place: (-place[0], *place[1:]) if backwards else place)
    plain = all(len(place) == 1 for place in ordered) and not backwards
    numbers = [place[0] for place in ordered] if plain else list(range(len(ordered)))
    for place, number in zip(ordered, numbers, strict=True):
        into[stack, place] = offset + number
    return offset + numbers[-1] + 1


@lru_cache(maxsize=8)
def _compiled(patterns: tuple[str, ...]) -> tuple[tuple[int, re.Pattern[str]], ...]:
    return tuple((at, re.compile(pattern)) for at, pattern in enumerate(patterns) if pattern)


def _rank(stack: str) -> tuple[object, ...]:
    """Whole models, then towers, encoders, all others and decoders, then the order among siblings."""
    parts = stack.split(".")
    model = next((at for at, pattern in _compiled(_MODELS) if pattern.search(stack)), _MODELS.index(""))
    side = _ENCODER_OR_DECODER.search(stack)
    in_decoder = side is not None and side[1] is None
    # What a tower is called is the name of its module, not of the container (`visual.blocks`, `visual_blocks`).
    tower = 0 if _FIRST.search(".".join(parts[:-1])) else 2 if side is None else 3 if in_decoder else 1
    return model, tower, tuple((_flow(part, in_decoder), natural(part)) for part in parts)


def _flow(part: str, in_decoder: bool) -> float:
    """Place among siblings. The middle of an autoencoder stands behind its encoder's stages, before its decoder's."""
    at = next((at for at, pattern in _compiled(_FLOW) if pattern.fullmatch(part)), _FLOW.index(""))
    return 1.5 if at == _MIDDLE_FLOW and in_decoder else at
