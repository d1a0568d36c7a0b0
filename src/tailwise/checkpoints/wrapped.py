"""A live module inside what torch.compile, DistributedDataParallel and FSDP made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

#: What torch.compile, FSDP and activation checkpointing put into names.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrap(model: Any) -> Any:
    """The module inside torch.compile, DistributedDataParallel and DataParallel."""
    import torch

    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, wrappers):
            model = model.module
        else:
            return model


def plain_name(name: str) -> str:
    """The name that a module or a parameter has in the model without wrappers."""
    for wrapper in _WRAPPERS:
        name = f"{name}.".replace(wrapper, "")[:-1]
    return name


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether the tensor lies in parts on several ranks (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered where it lies in parts: a collective then, which all its ranks must call."""
    parts: Any = tensor
    gathered: torch.Tensor = parts.full_tensor() if is_sharded(tensor) else tensor
    return gathered


def refuse_flat(model: torch.nn.Module) -> None:
    """Raise `UsageError` for a model whose weights are no matrices, since pieces of them lie on several ranks.

    Reading such a model is a collective of FSDP's own at moments of its own: a rank that did it alone would wait for
    ever.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        what, fix = "FSDP1 keeps weights as flat pieces", "shard the model with fully_shard (FSDP2) in its place"
    elif any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        what, fix = "ZeRO-3 keeps weights as flat pieces", "use ZeRO-2, or fully_shard (FSDP2)"
    else:
        return
    raise UsageError(f"{what}, which cannot be read as matrices", where=type(unwrap(model)).__name__,
                     fix=f"{fix}, or audit its checkpoints: tailwise watch DIR")  # fmt: skip
