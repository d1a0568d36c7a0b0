"""Other libraries' progress bars, log lines and warnings, held back for a while."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partialmethod
from typing import Any


@contextmanager
def quiet(*, streams: bool = False) -> Iterator[None]:
    """Let nothing below an error reach the terminal from transformers, datasets, lm-eval and what they load.

    With `streams`, what is written straight to stdout and stderr is dropped too; errors still arrive as exceptions.
    """
    before = logging.root.manager.disable
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, before)
        _hide_bars(stack)
        _hide_unswitched_bars(stack)
        if streams:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield


def _hide_bars(stack: ExitStack) -> None:
    """Switch off the bars of the libraries that are loaded by now, and on again those that were on."""
    for name, place in (("transformers", "transformers.utils.logging"), ("datasets", "datasets.utils.logging")):
        module: Any = sys.modules.get(place)
        if name not in sys.modules or module is None:
            continue
        off, on = _switch(module)
        if off is not None and on is not None:
            off()
            stack.callback(on)


def _hide_unswitched_bars(stack: ExitStack) -> None:
    """Of libraries that draw with tqdm and have no switch, as compressed-tensors while it unpacks a model.

    Who says `disable` for a bar of its own has it as it says.
    """
    try:
        from tqdm.std import tqdm
    except ImportError:
        return
    drawn: Any = tqdm
    own = drawn.__init__
    drawn.__init__ = partialmethod(own, disable=True)
    stack.callback(setattr, drawn, "__init__", own)


def _switch(module: Any) -> tuple[Callable[[], None] | None, Callable[[], None] | None]:
    was_on = getattr(module, "is_progress_bar_enabled", None)
    if was_on is not None and not was_on():
        return None, None
    return getattr(module, "disable_progress_bar", None), getattr(module, "enable_progress_bar", None)
