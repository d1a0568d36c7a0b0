"""A checkpoint as its readings have it: every weight is one tensor of real numbers, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.readings.claim import Codec, Read
from tailwise.checkpoints.readings.partition import PACKED, VERSIONS, Claims, claims_on

if TYPE_CHECKING:
    import torch


class ClaimedCheckpoint(Checkpoint):
    """Weights that are made of several tensors, or of codes, read as real numbers; everything else passes through."""

    def __init__(self, stored: Checkpoint, scope: Mapping[str, TensorSpec], claims: Claims) -> None:
        """`scope`: the stored tensors that are looked at."""
        self._inner, self._claims = stored, claims
        made = {name: found for name, found in claims.weights.items() if found[1].codec is not None}
        self._codecs: dict[str, Codec] = {n: read.codec for n, (_, read) in made.items() if read.codec is not None}
        self.uri, self.format, self.config = stored.uri, stored.format, stored.config
        self.revision, self.metadata, self.notes = stored.revision, stored.metadata, stored.notes
        self.parts, self.chosen = stored.parts, stored.chosen
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
        """Whether any weight is stored in a low-bit format, so that it can be written de-quantized."""
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

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Checkpoint`."""
        codec = self._codecs.get(name)
        if codec is None:
            return self._inner.read_rows(name, start, stop)
        return codec.rows(self._inner, start, stop)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `Checkpoint`."""
        codec = self._codecs.get(name)
        if codec is None:
            return self._inner.factors(name)
        found: tuple[torch.Tensor, torch.Tensor] | None
        found = codec.factors(self._inner) if hasattr(codec, "factors") else None
        return found

    def identity(self, name: str) -> str | None:
        """See `Checkpoint`: the identities of all members."""
        found = [self._inner.identity(member) for member in self.members.get(name, (name,))]
        if None in found:
            return None
        how = [f"{_stamp(self.readings.get(name, ''))} {self._codecs[name]!r}"] if name in self._codecs else []
        return "+".join([*how, *map(str, found)])

    def identity_of_first(self, name: str) -> str | None:
        """The identity of the first stored tensor of a weight alone, which is cheaper."""
        return self._inner.identity(self.members[name][0] if name in self.members else name)

    def part(self, names: Iterable[str]) -> ClaimedCheckpoint:
        """See `Checkpoint`."""
        wanted = list(names)
        stored = {member: None for name in wanted for member in self.members.get(name, (name,))}
        scope = {name: self.stored[name] for name in stored}
        claims = Claims({name: self._claims.weights[name] for name in wanted if name in self._claims.weights})
        return ClaimedCheckpoint(self._inner.part(stored), scope, claims)

    def close(self) -> None:
        """See `Checkpoint`."""
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
