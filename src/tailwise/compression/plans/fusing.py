"""Which tensors must have one format, or one scale too, since servers hold them in one matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from tailwise.number_formats.elements import Float8
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat

#: role → what it is fused with, inside one module.
_TOGETHER = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_kv"), "attention inputs"),
    **dict.fromkeys(("attn_q_a", "attn_kv_a"), "latent attention inputs"),
    **dict.fromkeys(("mlp_gate", "mlp_up", "mlp_gate_up"), "gate and up"),
    **dict.fromkeys(("shared_gate", "shared_up", "shared_gate_up"), "shared gate and up"),
}
_OF_EXPERT = re.compile(r"(?P<mixture>.*\bexperts)\.(?P<number>\d+)(?=\.)")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


class NamedTensor(Protocol):
    """What is known of a tensor: a candidate, or an entry of a plan."""

    @property
    def tensor(self) -> str:
        """Full name."""

    @property
    def role(self) -> str:
        """A key of `roles.ROLES`."""

    @property
    def block(self) -> int | None:
        """Its block."""


N = TypeVar("N", bound=NamedTensor)


def fused(items: Sequence[N], *, per_expert: bool = False) -> dict[str, tuple[N, ...]]:
    """Name → tensors that need one format, in the order of their first: most are alone.

    Together are query, key and value of one attention, gate and up of one feed-forward, and all routed experts of a
    block; with `per_expert` the projections of one expert.
    """
    groups: dict[str, list[N]] = {}
    for item in items:
        groups.setdefault(_key(item, per_expert), []).append(item)
    return {name: tuple(members) for name, members in groups.items()}


def merged_by_servers(chosen: NumberFormat) -> bool:
    """Whether servers keep one scale of the tensor for all layers that they hold as one.

    vLLM and SGLang take the largest of nvfp4's scales, or that of the first of an expert's, and decode all by it; fp8
    with a scale of the tensor is rounded again to the largest in some of their kernels. Integers with one have none.
    """
    if not isinstance(chosen, ScaledFormat):
        return False
    return bool(chosen.rule.tensor_bits) or (chosen.shared == "tensor" and isinstance(chosen.element, Float8))


def in_one_matrix(items: Iterable[N]) -> list[tuple[N, ...]]:
    """Tensors that servers hold as one: query, key and value; gate and up, those of one expert by themselves.

    Each as often as it is given; those that are alone are left out.
    """
    groups: dict[str, list[N]] = {}
    for item in items:
        module = item.tensor.removesuffix(".weight").rpartition(".")[0]
        together = "gate and up" if item.role in ("expert_gate", "expert_up") else _TOGETHER.get(item.role)
        if together is not None:
            groups.setdefault(f"{module} ({together})", []).append(item)
    return [tuple(members) for members in groups.values() if len(members) > 1]


def expert_of(tensor: str) -> tuple[str, int] | None:
    """(mixture, number) of the expert that a tensor is of by its name; None where it holds several, or none."""
    match = _OF_EXPERT.match(tensor)
    return None if match is None else (match["mixture"], int(match["number"]))


def mixture_of(tensor: str) -> str:
    """What must go together with an expert's tensor: the expert, or the mixture whose stacks it is among."""
    match = _OF_EXPERT.match(tensor)
    return tensor.rpartition(".")[0] if match is None else match[0]


def _key(item: NamedTensor, per_expert: bool) -> str:
    module = item.tensor.removesuffix(".weight").rpartition(".")[0]
    if item.role.startswith("expert_"):
        if per_expert and (number := _NUMBER.findall(module)) and "expert" in module:
            return f"{module} (expert {number[-1][1:]})"
        return f"experts of block {item.block}" if item.block is not None else f"experts of {_NUMBER.sub('', module)}"
    together = _TOGETHER.get(item.role)
    return item.tensor if together is None else f"{module or 'model'} ({together})"
