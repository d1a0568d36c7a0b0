"""Low-bit checkpoints as if they were dense: every packed weight becomes one tensor of real numbers.

`decoded` wraps a checkpoint. Each codec finds its tensors by name and shape, not by what the config claims,
since configs are lost more often than names; the config settles what the names leave open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tailwise.checkpoints import codecs_blockwise, codecs_compressed, codecs_torchao, codecs_words
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

if TYPE_CHECKING:
    import torch


class Codec(Protocol):
    """How one packed weight is read."""

    @property
    def recipe(self) -> str:
        """Name of the packing: gptq, awq, fp8, int8, bnb4, mxfp4, compressed-tensors, torchao."""
        ...

    @property
    def dtype(self) -> str:
        """What the entries are stored as, for tables."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded weight."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """The stored tensors, the one with the codes first."""
        ...

    @property
    def by_rows(self) -> bool:
        """Whether rows can be decoded without the others."""
        ...

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Decoded rows, float32."""
        ...


_FINDERS = (
    codecs_compressed.find,
    codecs_torchao.find,
    codecs_words.find_gptq,
    codecs_words.find_awq,
    codecs_blockwise.find_bnb4,
    codecs_blockwise.find_int8,
    codecs_blockwise.find_mxfp4,
    codecs_blockwise.find_fp8,
)


class DecodedCheckpoint(Checkpoint):
    """A checkpoint whose packed weights read as float32; everything else passes through."""

    def __init__(
        self,
        stored: Checkpoint,
        scope: Mapping[str, TensorSpec],  # the stored tensors that are looked at
        codecs: Mapping[str, Codec],
        unsupported: Mapping[str, str],
    ) -> None:
        self._inner, self._codecs = stored, codecs
        self.uri, self.format, self.config = stored.uri, stored.format, stored.config
        self.revision, self.metadata = stored.revision, stored.metadata
        self.stored = scope
        self.shared, self.local = dict(stored.shared), stored.local
        self.module_kinds = dict(stored.module_kinds)
        self.unsupported = unsupported
        self.recipes = {name: codec.recipe for name, codec in codecs.items()}
        self.members = {name: codec.members for name, codec in codecs.items()}
        self.read_whole = frozenset(name for name, codec in codecs.items() if not codec.by_rows)
        self.tensors = dict(self._specs())

    def _specs(self) -> Iterator[tuple[str, TensorSpec]]:
        heads = {codec.members[0]: name for name, codec in self._codecs.items()}
        inside = {member for codec in self._codecs.values() for member in codec.members}
        for stored, spec in self.stored.items():
            if (name := heads.get(stored)) is not None:
                codec = self._codecs[name]
                nbytes = sum(self.stored[member].nbytes for member in codec.members)
                yield name, TensorSpec(name, codec.dtype, codec.shape, nbytes)
            elif stored not in inside:
                yield stored, spec

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Checkpoint`."""
        codec = self._codecs.get(name)
        if codec is None:
            return self._inner.read_rows(name, start, stop)
        return codec.rows(self._inner, start, stop)

    def identity(self, name: str) -> str | None:
        """See `Checkpoint`: the identities of all members."""
        found = [self._inner.identity(member) for member in self.members.get(name, (name,))]
        if None in found:
            return None
        how = [repr(self._codecs[name])] if name in self._codecs else []
        return "+".join([*how, *map(str, found)])

    def part(self, names: Iterable[str]) -> DecodedCheckpoint:
        """See `Checkpoint`."""
        wanted = list(names)
        codecs = {name: self._codecs[name] for name in wanted if name in self._codecs}
        stored = {member: None for name in wanted for member in self.members.get(name, (name,))}
        scope = {name: self.stored[name] for name in stored}
        return DecodedCheckpoint(self._inner.part(stored), scope, codecs, {})

    def close(self) -> None:
        """See `Checkpoint`."""
        self._inner.close()


def decoded(checkpoint: Checkpoint, *, only: Iterable[str] | None = None) -> Checkpoint:
    """The checkpoint with its packed weights decoded; itself, where nothing is packed.

    `only`: look no further than these stored tensors.
    """
    tensors = checkpoint.tensors if only is None else {n: checkpoint.tensors[n] for n in only}
    if isinstance(checkpoint, DecodedCheckpoint) or not tensors:
        return checkpoint
    codecs: dict[str, Codec] = {}
    unsupported: dict[str, str] = {}
    taken: set[str] = set()
    for find in _FINDERS:
        free = {name: spec for name, spec in tensors.items() if name not in taken}
        for name, outcome in find(free, checkpoint):
            if isinstance(outcome, str):
                unsupported[name] = outcome
                taken.add(name)
            else:
                codecs[name] = outcome
                taken.update(outcome.members)
    unsupported.update(_unknown(tensors, taken, checkpoint.config))
    if not codecs and not unsupported:
        return checkpoint
    return DecodedCheckpoint(checkpoint, tensors, codecs, unsupported)


def _unknown(
    tensors: Mapping[str, TensorSpec], taken: set[str], config: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Integer matrices of a model that says it is quantized, in a packing that no codec knows."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method", "?") if isinstance(settings, Mapping) else None
    for name, spec in tensors.items():
        codes = spec.dtype in ("I32", "I16", "I8", "U8") and len(spec.shape) >= 2
        if codes and name not in taken and (method or name.endswith("qweight")):
            yield (
                name,
                (
                    f"weights packed by {method or 'an unknown method'} in a layout that is not known here; "
                    "audit the model before quantization, or save it de-quantized (transformers dequantize())"
                ),
            )
