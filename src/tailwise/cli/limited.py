"""A command under a limit of addresses (`ulimit -v`, a batch system): libraries that end the process are answered for.

V8, Arrow, MKL and Rust abort where an allocation fails, and a process that has ended can say nothing. So the command
runs in a process of its own there, and this one tells how it ended.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from tailwise.core.storage import is_limited

#: What a library ends the process with; every other signal was sent.
_ABORTS = frozenset(
    found for name in ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGTRAP", "SIGILL", "SIGFPE")
    if (found := getattr(signal, name, None)) is not None
)  # fmt: skip
_PASSED_ON = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def where_it_is_limited(command: Callable[[], None], told: Callable[[str], int]) -> None:
    """Run `command`, which ends the process. `told` says why it was ended otherwise, and gives the exit code."""
    if not (is_limited() and hasattr(os, "fork")):
        command()
        return
    # OpenBLAS takes room for each thread that it may start, and where there is none tries again for ever.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    child = os.fork()
    if not child:
        command()
        return
    sys.exit(_ended(child, told))


def _ended(child: int, told: Callable[[str], int]) -> int:
    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    # The terminal interrupts both; the command decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = signal.Signals(os.WTERMSIG(status))
    if number in _ABORTS:
        return told(number.name)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number
