"""The table of readings, and what they claim of a checkpoint: every stored tensor exactly once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.readings import blockwise, compressed, computed, factors, four_bit, mlx, plain
from tailwise.checkpoints.readings import gptq_awq as words
from tailwise.checkpoints.readings import torchao_tensors as torchao
from tailwise.checkpoints.readings.claim import Aside, Claim, Codec, Read, Refused, Siblings, StoredReading

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_CODES = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F4"})
#: Readings that say of their tensors what they are made for. What none of them claims is left to `plain`.
READINGS: tuple[StoredReading, ...] = (
    StoredReading("compressed-tensors", 1, compressed.find, ("weight_packed", "weight_scale"), _CODES, packed=True),
    StoredReading("torchao", 1, torchao.find, ("_qdata",), packed=True),
    StoredReading("gptq", 2, words.find_gptq, ("qweight",), packed=True),
    StoredReading("awq", 1, words.find_awq, ("qweight",), packed=True),
    StoredReading("mlx", 1, mlx.find, mlx.MARKS, packed=True),
    StoredReading("bnb4", 1, four_bit.find_bnb4, (".quant_state.bitsandbytes__",), packed=True),
    StoredReading("int8", 1, blockwise.find_bnb8, ("SCB",), packed=True),
    StoredReading("mxfp4", 1, four_bit.find_mxfp4, ("_blocks",), packed=True),
    StoredReading("fp4", 1, four_bit.find_fp4, ("scale",), _CODES, packed=True),
    StoredReading("comfy", 1, blockwise.find_comfy, ("weight_scale",), packed=True),
    StoredReading("fp8", 2, blockwise.find_scaled, ("scale",), packed=True),
    StoredReading("computed", 1, computed.find, computed.MARKS),
    StoredReading("lora", 2, factors.find, factors.MARKS),
)
PLAIN = StoredReading("plain", 1, lambda *_: iter(()), ())
#: Name → version, for provenance.
VERSIONS: Mapping[str, int] = {reading.name: reading.version for reading in (PLAIN, *READINGS)}
PACKED = frozenset(reading.name for reading in READINGS if reading.packed)


@dataclass
class Claims:
    """What the stored tensors of a checkpoint are. Together the members name every tensor once."""

    weights: dict[str, tuple[str, Read]] = field(default_factory=dict)  # name of the weight → reading, claim
    refused: dict[str, str] = field(default_factory=dict)  # stored tensor → why
    aside: dict[str, str] = field(default_factory=dict)  # stored tensor → why it is no weight

    def add(self, reading: str, claim: Claim) -> None:
        """Take a claim over."""
        if isinstance(claim, Read) and claim.codec is not None and not _is_shape(claim.codec.shape):
            why = f"its shape is {str(list(claim.codec.shape))[:80]}, which no matrix has"
            self.refused.update(dict.fromkeys(claim.members, why))
        elif isinstance(claim, Read):
            self.weights[claim.name] = reading, claim
        elif isinstance(claim, Refused):
            self.refused.update(dict.fromkeys(claim.members, claim.why))
        else:
            self.aside.update(dict.fromkeys(claim.members, claim.why))


def _is_shape(shape: Sequence[object]) -> bool:
    """What a file says of a shape may be anything."""
    return all(isinstance(side, int) and 0 <= side < 1 << 62 for side in shape)


def claims_on(checkpoint: Checkpoint, tensors: Mapping[str, TensorSpec]) -> Claims:
    """The claims on these stored tensors, from names, dtypes, shapes and the config."""
    told = (
        {n: why for n, why in reasons.items() if n in tensors} for reasons in (checkpoint.unsupported, checkpoint.aside)
    )
    claims = Claims({}, *told)
    left = {n: spec for n, spec in tensors.items() if n not in claims.refused and n not in claims.aside}
    for group in siblings_of(left):
        for reading, claim in _of_module(group, checkpoint):
            claims.add(reading, claim)
    return claims


def _of_module(group: Siblings, checkpoint: Checkpoint) -> Iterator[tuple[str, Claim]]:
    special = _looking_at(tuple((leaf, spec.dtype) for leaf, spec in group.leaves.items()))
    if not special:
        yield from (("plain", claim) for claim in plain.find(group, checkpoint, group.leaves))
        return
    made = [(reading.name, claim) for reading in special for claim in reading.find(group, checkpoint)]
    owners = {member for _, claim in made for member in claim.members}
    if len(made) > 1 and len(owners) < sum(len(claim.members) for _, claim in made):
        made = _without_clashes(made)
    yield from made
    if len(owners) == len(group.leaves):
        return
    left = {leaf: spec for leaf, spec in group.leaves.items() if spec.name not in owners}
    if left:
        yield from (("plain", claim) for claim in plain.find(group, checkpoint, left))


def _without_clashes(made: list[tuple[str, Claim]]) -> list[tuple[str, Claim]]:
    """Two readings that claim one tensor are an error of theirs, and nobody may choose between them."""
    owners: dict[str, list[str]] = {}
    for name, claim in made:
        for member in claim.members:
            owners.setdefault(member, []).append(name)
    twice = {member: names for member, names in owners.items() if len(names) > 1}
    clashes = (next((names for m, names in twice.items() if m in claim.members), None) for _, claim in made)
    return [
        (name, claim if clash is None else _both(claim, clash))
        for (name, claim), clash in zip(made, clashes, strict=True)
    ]


def _both(claim: Claim, names: list[str]) -> Claim:
    why = f"two readings claim it ({' and '.join(dict.fromkeys(names))}), and nothing tells which is right"
    return Refused(claim.members, f"{why}; please report this checkpoint")


@lru_cache(maxsize=4096)
def _looking_at(leaves: tuple[tuple[str, str], ...]) -> tuple[StoredReading, ...]:
    dtypes = {dtype for _, dtype in leaves}
    return tuple(
        reading
        for reading in READINGS
        if any(mark in leaf for leaf, _ in leaves for mark in reading.marks)
        and (not reading.dtypes or not dtypes.isdisjoint(reading.dtypes))
    )


__all__ = ["PACKED", "READINGS", "VERSIONS", "Aside", "Claims", "claims_on"]


#: Where a module's own name ends although more dots follow: in what torch's parametrizations, adapters, and packings
#: that hang their scales below the weight (`m.weight.absmax`) put there.
_INNER = re.compile(
    r"\.(?=parametrizations\."
    r"|weight\."
    r"|lora_(?:[ABab]|down|up|mid|embedding_[AB]|magnitude_vector|alpha)(?:\.|$)"
    r"|trainable_tokens_(?:delta|original)(?:\.|$)"
    r"|lora_linear_layer\.|lora\.(?:down|up)\.|lora\.[AB]$|adaptor\.[AB]\.weight$"
    r"|(?:hada|lokr|oft|boft|ia3|vera|loha|glora)_\w+(?:\.|$)"
    r"|(?:down|up|linear_in|linear_out|[ab][12])\.weight$)"
)
_MARKED = re.compile(
    r"parametrizations\.|weight\.|lora|lycoris|hada_|lokr_|oft_|ia3_|vera_|loha_|\.(?:down|up)\.weight"
    r"|adaptor\.|adapter|trainable_tokens"
)
#: Names that are factors only where the module says so: `to_q_lora.down.weight`, `linear_qkv.adapter.linear_in.weight`
#: (a bottleneck with a non-linearity has the same leaves, under another name), `lora_unet_x.a1.weight`.
_ONLY_IN = (
    (re.compile(r"(?:down|up)\."), re.compile(r"lora[^.]*$")),
    (
        re.compile(r"linear_(?:in|out)\."),
        re.compile(r"\.lora_[^.]*$|\.linear_(?:qkv|proj|fc1|fc2)\.adapter(?:_[qkv]|_gate|_up)?$"),
    ),
    (re.compile(r"[ab][12]\."), re.compile(r"\.(?:lora|lycoris)_[^.]*$")),
)


def siblings_of(tensors: Mapping[str, TensorSpec]) -> Iterator[Siblings]:
    """Every module with tensors of its own, in the order of its first tensor."""
    siblings: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in tensors.items():
        module, leaf = _split(name)
        siblings.setdefault(module, {})[leaf] = spec
    for module, leaves in siblings.items():
        yield Siblings(module, leaves)


def _split(name: str) -> tuple[str, str]:
    if _MARKED.search(name):
        dotted = f".{name}"
        if (match := _inner(dotted)) is not None:
            return dotted[1 : match.start()], dotted[match.end() :]
    module, _, leaf = name.rpartition(".")
    return module, leaf


def _inner(dotted: str) -> re.Match[str] | None:
    for match in _INNER.finditer(dotted):
        where = next((module for leaf, module in _ONLY_IN if leaf.match(dotted, match.end())), None)
        if where is None or where.search(dotted[: match.start()]):
            return match
    return None


class ClaimedCheckpoint(Checkpoint):
    """Weights that are made of several tensors, or of codes, read as real numbers; everything else passes through."""

    def __init__(self, stored: Checkpoint, scope: Mapping[str, TensorSpec], claims: Claims) -> None:
        """`scope`: the stored tensors that are looked at."""
        self._inner, self._claims = stored, claims
        made = {name: claim for name, claim in claims.weights.items() if claim[1].codec is not None}
        self._codecs: dict[str, Codec] = {n: read.codec for n, (_, read) in made.items() if read.codec is not None}
        self.uri, self.format, self.config = stored.uri, stored.format, stored.config
        self.revision, self.metadata, self.notes = stored.revision, stored.metadata, stored.notes
        self.parts, self.chosen = stored.parts, stored.chosen
        self.adapter_mode, self.base_uri = stored.adapter_mode, stored.base_uri
        self.stored, self.factors_apart = scope, stored.factors_apart
        self.shared, self.local = dict(stored.shared), stored.local
        self.module_kinds, self.module_scales = dict(stored.module_kinds), dict(stored.module_scales)
        self.unsupported, self.aside = claims.refused, claims.aside
        self.readings = {**stored.readings, **{name: reading for name, (reading, _) in made.items()}}
        self.members = {name: read.members for name, (_, read) in made.items()}
        noted = {name: read.note for name, (_, read) in claims.weights.items() if read.note}
        self.assumed = {**stored.assumed, **noted}
        whole = (name for name, codec in self._codecs.items() if not codec.by_rows)
        self.read_whole = stored.read_whole | frozenset(whole)
        self.tensors = dict(self._specs())

    @property
    def is_packed(self) -> bool:
        """Whether any weight is stored in a low-bit format, so that it can be written dequantized."""
        return any(reading in PACKED for reading, read in self._claims.weights.values() if read.codec is not None)

    def codec_of(self, name: str) -> Codec | None:
        """What makes a weight of the stored tensors; None where it is stored as it is."""
        return self._codecs.get(name)

    def _specs(self) -> Iterator[tuple[str, TensorSpec]]:
        heads: dict[str, list[str]] = {}
        for name, members in self.members.items():
            heads.setdefault(members[0], []).append(name)
        inside = {member for members in self.members.values() for member in members}
        for stored, spec in self.stored.items():
            for name in heads.get(stored, ()):
                codec = self._codecs[name]
                nbytes = sum(self.stored[member].nbytes for member in self.members[name])
                yield name, TensorSpec(name, codec.dtype, codec.shape, nbytes)
            if stored not in inside:
                yield stored, spec

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        codec = self._codecs.get(name)
        if codec is None:
            return self._inner.read_rows(name, start, stop)
        return codec.rows(self._inner, start, stop)

    @override
    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        codec = self._codecs.get(name)
        if codec is None:
            return self._inner.factors(name)
        pair: tuple[torch.Tensor, torch.Tensor] | None
        pair = codec.factors(self._inner) if hasattr(codec, "factors") else None
        return pair

    @override
    def identity(self, name: str) -> str | None:
        """The identities of all members."""
        identities = [self._inner.identity(member) for member in self.members.get(name, (name,))]
        if None in identities:
            return None
        how = [f"{_stamp(self.readings.get(name, ''))} {self._codecs[name]!r}"] if name in self._codecs else []
        return "+".join([*how, *map(str, identities)])

    def identity_of_first(self, name: str) -> str | None:
        """The identity of the first stored tensor of a weight alone, which is cheaper."""
        return self._inner.identity(self.members[name][0] if name in self.members else name)

    @override
    def part(self, names: Iterable[str]) -> ClaimedCheckpoint:
        wanted = list(names)
        stored = {member: None for name in wanted for member in self.members.get(name, (name,))}
        scope = {name: self.stored[name] for name in stored}
        claims = Claims({name: self._claims.weights[name] for name in wanted if name in self._claims.weights})
        return ClaimedCheckpoint(self._inner.part(stored), scope, claims)

    @override
    def fetch(self) -> None:
        self._inner.fetch()

    @override
    def close(self) -> None:
        self._inner.close()


def _stamp(reading: str) -> str:
    return f"{reading}/{VERSIONS.get(reading, 0)}"


def claimed(checkpoint: Checkpoint) -> ClaimedCheckpoint:
    """The checkpoint as its readings have it."""
    if isinstance(checkpoint, ClaimedCheckpoint):
        return checkpoint
    return ClaimedCheckpoint(checkpoint, checkpoint.tensors, claims_on(checkpoint, checkpoint.tensors))


def made_by(checkpoint: Checkpoint, name: str, members: tuple[str, ...], codec: Codec) -> ClaimedCheckpoint:
    """The one weight `name` that a codec makes of stored tensors."""
    scope = {member: checkpoint.tensors[member] for member in members}
    return ClaimedCheckpoint(checkpoint, scope, Claims({name: ("", Read(name, members, codec))}))
