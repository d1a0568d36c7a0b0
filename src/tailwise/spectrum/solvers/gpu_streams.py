"""Waiting for a GPU, where threads work on streams of their own. A CPU has always done what it was given."""

from __future__ import annotations

import torch


def finish(device: torch.device) -> None:
    """Wait for all that `device` was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finish_stream(device: torch.device) -> None:
    """Wait for what this thread gave to `device`, so that others may go on with it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
