"""Where computations run."""

from __future__ import annotations

from tailwise.core.errors import UsageError


def checked_device(device: str) -> str:
    """`device`, if torch knows it and it is there; `UsageError` otherwise."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device", fix="use cpu, cuda or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", fix="use --device cpu")
    return device
