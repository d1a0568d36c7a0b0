"""A quantized checkpoint as the dense one that it decodes to, to be written as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.checkpoint import DTYPE_BITS, Checkpoint, TensorSpec, code_of
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.readings.partition import ClaimedCheckpoint, claimed
from tailwise.checkpoints.writer import OutputLayout
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

#: What config.json says of the packing, and a dense checkpoint must not.
SETTINGS = ("quantization_config", "compression_config")


#: Numbers of eight bits without a scale, which no operator computes in.
_EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2"})


class Dequantized(Checkpoint):
    """Packed weights are read as the dtype that the config names, bfloat16 where it names none."""

    def __init__(self, stored: ClaimedCheckpoint) -> None:
        self._inner = stored
        self._code = _code(stored.config)
        self.uri, self.format, self.local = stored.uri, stored.format, stored.local
        self.revision, self.metadata, self.shared = stored.revision, stored.metadata, dict(stored.shared)
        self.read_whole, self.module_kinds = stored.read_whole, dict(stored.module_kinds)
        self.config = {name: value for name, value in stored.config.items() if name not in SETTINGS}
        self.tensors = {name: self._spec(spec) for name, spec in stored.tensors.items()}

    def _spec(self, spec: TensorSpec) -> TensorSpec:
        if not self._is_code(spec):
            return spec
        return TensorSpec(spec.name, self._code, spec.shape, spec.numel * DTYPE_BITS[self._code] // 8)

    def _is_code(self, spec: TensorSpec) -> bool:
        """Of codes and scales, or eight bits that stand for themselves."""
        return spec.name in self._inner.readings or spec.dtype in _EIGHT_BITS

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = self._inner.read_rows(name, start, stop)
        return rows.to(torch_dtype(self._code, where=name)) if self._is_code(self._inner.tensors[name]) else rows

    @override
    def identity(self, name: str) -> str | None:
        return self._inner.identity(name)

    @override
    def part(self, names: Iterable[str]) -> Dequantized:
        return Dequantized(self._inner.part(names))

    @override
    def fetch(self) -> None:
        self._inner.fetch()

    def layout(self, stored: OutputLayout) -> OutputLayout:
        """The files of the source, with one tensor where several made one."""
        heads = {members[0]: name for name, members in self._inner.members.items()}
        inside = {member for members in self._inner.members.values() for member in members}

        def specs(old: tuple[TensorSpec, ...]) -> Iterator[TensorSpec]:
            for spec in old:
                if spec.name in heads:
                    yield self.tensors[heads[spec.name]]
                elif spec.name not in inside:
                    yield self.tensors[spec.name]

        shards = tuple(replace(shard, specs=tuple(specs(shard.specs)), metadata={}) for shard in stored.shards)
        return replace(stored, shards=shards, left_out=SETTINGS)


def dequantized(checkpoint: Checkpoint) -> Dequantized | None:
    """The dense checkpoint that a quantized one decodes to; None where nothing is packed.

    `UsageError` where a part of it is in a packing that is not known.
    """
    claims = claimed(checkpoint)
    bare = any(spec.dtype in _EIGHT_BITS for spec in claims.tensors.values())
    if not (claims.is_packed or claims.unsupported or bare):
        return None
    for name, why in claims.unsupported.items():
        raise UsageError(f"{name} cannot be dequantized: {why}", where=checkpoint.uri)
    return Dequantized(claims)


def _code(config: Mapping[str, Any]) -> str:
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    code = code_of(named)
    return code if code in ("F32", "F16", "BF16") else "BF16"
