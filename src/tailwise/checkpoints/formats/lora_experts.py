"""peft's `target_parameters`: one pair of flat factors for all experts of a stacked parameter.

    ΔW[e] = s · B[e] · A[e],   A (E·r × in) = (E, r, in),   B (out × r·E) = (out, r, E)

The file names the module, not the parameter: where several of a module are adapted, their wrappers are nested in the
order of the model's code, which no file tells. The shapes in the base tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.checkpoints.formats.lora_names import Update


def in_base(updates: Iterable[Update], adapter: Checkpoint, base: Checkpoint) -> list[Update]:
    """The updates, those of stacked parameters with the base's parameter that each changes. `UsageError`."""
    found: list[Update] = []
    taken: set[str] = set()
    for update in updates:
        if not update.parameters:
            found.append(update)
            continue
        fitting = [name for name in update.parameters if _fits(update, adapter, base, name)]
        if len(fitting) != 1 or fitting[0] in taken:
            names = ", ".join(update.parameters)
            what = "none of them has" if not fitting else "not one alone has"
            raise UsageError(
                f"the adapter updates a parameter of {update.module} ({names}), and {what} the shape of its factors",
                where=adapter.uri,
                fix="give the base model that the adapter was trained on, or merge it with peft (merge_and_unload) "
                "and audit the saved model",
            )
        taken.add(fitting[0])
        found.append(_placed(update, adapter, base, fitting[0]))
    return found


def _fits(update: Update, adapter: Checkpoint, base: Checkpoint, name: str) -> bool:
    spec = base.tensors.get(name)
    rows, inputs = adapter.tensors[update.down].shape
    outputs = adapter.tensors[update.up].shape[0]
    if spec is None or len(spec.shape) not in (2, 3):
        return False
    experts, *sides = spec.shape if len(spec.shape) == 3 else (1, *spec.shape)
    return rows == experts * update.rank and sorted(sides) == sorted((inputs, outputs))


def _placed(update: Update, adapter: Checkpoint, base: Checkpoint, name: str) -> Update:
    shape = base.tensors[name].shape
    inputs, outputs = adapter.tensors[update.down].shape[1], adapter.tensors[update.up].shape[0]
    if len(shape) == 3 and inputs == outputs:
        raise UsageError(
            f"the experts of {name} are square, and the adapter does not tell which axis its inputs are",
            where=adapter.uri,
            fix="audit the update alone, without a base, or merge it with peft (merge_and_unload)",
        )
    experts = shape[0] if len(shape) == 3 else 0
    return replace(update, tensor=name, experts=experts, flip=shape[-2:] != (outputs, inputs), parameters=())


def alone(updates: Iterable[Update], adapter: Checkpoint) -> Iterator[tuple[Update, str]]:
    """The updates without a base, one for each expert, and what is not known of them."""
    for update in updates:
        if not update.parameters:
            yield update, ""
            continue
        count = adapter.tensors[update.down].shape[0] // update.rank
        name, note = update.parameters[0], ""
        if len(update.parameters) > 1:
            name = f"{update.module}{'.base_layer' * update.depth}"
            ends = ", ".join(parameter.rpartition(".")[2] for parameter in update.parameters)
            note = f"the change of one of {ends}: which one only the base tells (give it as base)"
        for e in range(count):
            at = f"{name}[{e}]" if count > 1 else name
            yield replace(update, tensor=at, experts=count, expert=e, parameters=()), note


def factors_of(
    update: Update, down: torch.Tensor, up: torch.Tensor, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B[e], A[e]) of the experts `start:stop`, shapes (n, out, r) and (n, r, in)."""
    A = down.reshape(update.experts, update.rank, -1)[start:stop]
    B = up.reshape(up.shape[0], update.rank, update.experts).permute(2, 0, 1)[start:stop]
    return B, A
