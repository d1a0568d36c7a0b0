"""One CUDA stream a thread, so that several matrices are under way on one GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MINE = threading.local()


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """Work of this thread on a stream of its own; on the CPU nothing."""
    if not device.startswith("cuda"):
        yield
        return
    import torch

    with torch.cuda.stream(_stream(torch.device(device))):
        yield


def _stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    streams: dict[torch.device, torch.cuda.Stream] = _MINE.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
