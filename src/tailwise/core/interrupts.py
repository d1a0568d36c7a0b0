"""Work that ends early and keeps what it has, where it is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: What ends a piece of work early: Ctrl-C, and what schedulers send before they kill.
_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ended_by_interrupts(end: Callable[[], None]) -> Iterator[None]:
    """Within, the first interruption calls `end`; a second one does what it always did.

    Only where signals come, in the main thread, and where nobody else has a handler for them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in _ENDING}
    ours = [number for number in _ENDING if usual[number] in (signal.default_int_handler, signal.SIG_DFL)]

    def give_back() -> None:
        for number in ours:
            signal.signal(number, usual[number])

    def ending(_number: int, _frame: FrameType | None) -> Any:
        give_back()
        end()

    for number in ours:
        signal.signal(number, ending)
    try:
        yield
    finally:
        give_back()
