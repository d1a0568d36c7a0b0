"""Whether there is room in the address space, asked before native libraries are: without it, some end the process."""

from __future__ import annotations

import mmap

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: What Arrow, torch and LAPACK take beside the data: pools, stacks of threads, workspaces.
_BESIDE = 128 << 20


def is_limited() -> bool:
    """Whether there is a limit of addresses."""
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def ensure_room(nbytes: int = 0) -> None:
    """`MemoryError` where a limit of addresses (`ulimit -v`, a batch system's) leaves no room for `nbytes` and more."""
    if not is_limited():
        return
    try:
        mmap.mmap(-1, _BESIDE + nbytes).close()
    except OSError as error:
        raise MemoryError(f"no room for {(_BESIDE + nbytes) >> 20} MiB") from error
