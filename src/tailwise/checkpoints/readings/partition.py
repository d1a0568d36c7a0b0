"""The table of readings, and what they claim of a checkpoint: every stored tensor exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings import blockwise, compressed, computed, factors, mlx, plain
from tailwise.checkpoints.readings import torchao_tensors as torchao
from tailwise.checkpoints.readings import gptq_awq as words
from tailwise.checkpoints.readings.claim import Aside, Claim, Read, Reading, Refused, Siblings
from tailwise.checkpoints.readings.siblings import siblings_of

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_CODES = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F4"})
#: Readings that say of their tensors what they are made for. What none of them claims is left to `plain`.
READINGS: tuple[Reading, ...] = (
    Reading("compressed-tensors", 1, compressed.find, ("weight_packed", "weight_scale"), _CODES, packed=True),
    Reading("torchao", 1, torchao.find, ("_qdata",), packed=True),
    Reading("gptq", 2, words.find_gptq, ("qweight",), packed=True),
    Reading("awq", 1, words.find_awq, ("qweight",), packed=True),
    Reading("mlx", 1, mlx.find, mlx.MARKS, packed=True),
    Reading("bnb4", 1, blockwise.find_bnb4, (".quant_state.bitsandbytes__",), packed=True),
    Reading("int8", 1, blockwise.find_bnb8, ("SCB",), packed=True),
    Reading("mxfp4", 1, blockwise.find_mxfp4, ("_blocks",), packed=True),
    Reading("fp4", 1, blockwise.find_fp4, ("scale",), _CODES, packed=True),
    Reading("comfy", 1, blockwise.find_comfy, ("weight_scale",), packed=True),
    Reading("fp8", 2, blockwise.find_scaled, ("scale",), packed=True),
    Reading("computed", 1, computed.find, computed.MARKS),
    Reading("lora", 2, factors.find, factors.MARKS),
)
PLAIN = Reading("plain", 1, lambda *_: iter(()), ())
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
        if isinstance(claim, Read):
            self.weights[claim.name] = reading, claim
        elif isinstance(claim, Refused):
            self.refused.update(dict.fromkeys(claim.members, claim.why))
        else:
            self.aside.update(dict.fromkeys(claim.members, claim.why))


def claims_on(checkpoint: Checkpoint, tensors: Mapping[str, TensorSpec]) -> Claims:
    """The claims on these stored tensors, from names, dtypes, shapes and the config."""
    told = ({n: why for n, why in said.items() if n in tensors} for said in (checkpoint.unsupported, checkpoint.aside))
    found = Claims({}, *told)
    left = {n: spec for n, spec in tensors.items() if n not in found.refused and n not in found.aside}
    for group in siblings_of(left):
        for reading, claim in _of_module(group, checkpoint):
            found.add(reading, claim)
    return found


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
def _looking_at(leaves: tuple[tuple[str, str], ...]) -> tuple[Reading, ...]:
    dtypes = {dtype for _, dtype in leaves}
    return tuple(
        reading
        for reading in READINGS
        if any(mark in leaf for leaf, _ in leaves for mark in reading.marks)
        and (not reading.dtypes or not dtypes.isdisjoint(reading.dtypes))
    )


__all__ = ["PACKED", "READINGS", "VERSIONS", "Aside", "Claims", "claims_on"]
