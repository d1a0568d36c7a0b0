"""A bar where somebody watches: in notebooks and interactive shells; scripts and programs stay quiet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: How far a thing is: what is being done, how much of it, and how much in all.
Told = tuple[str, float, float]


def is_watched() -> bool:
    """Whether this is a notebook, or a Python or IPython shell."""
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1") and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def listener(progress: Any, title: str, told: Callable[..., Told]) -> Iterator[Any]:
    """What is called with each step of a piece of work.

    `progress` is a function, which is taken as it is; True for a bar; False for nothing; None for a bar where this is a
    notebook or an interactive shell. `told` reads how far the work is from what the function is called with.
    """
    if callable(progress):
        yield progress
    elif progress or (progress is None and is_watched()):
        bar = _Bar(title, told)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield None


def of_share(what: str, share: float) -> Told:
    """How far a search or a training is, which says the share of all, in percent."""
    return what, round(100 * share, 1), 100


class _Bar:
    """A bar of tqdm; it appears where the work takes more than a moment."""

    def __init__(self, title: str, told: Callable[..., Told]) -> None:
        self._title, self._told, self._what = title, told, ""
        self._bar: Any = None
        self._last = 0.0

    def __call__(self, *step: Any) -> None:
        what, done, total = self._told(*step)
        if self._bar is None or done < self._last or self._bar.total != total:
            self._begin(total)
        if what and what != self._what:
            self._bar.set_postfix_str(what[-40:], refresh=False)
            self._what = what
        self._bar.update(done - self._last)
        self._last = done

    def _begin(self, total: float) -> None:
        self.close()
        self._bar, self._last = (
            _kind_of_bar()(total=total, desc=self._title, delay=0.5, leave=False, disable=False),
            0.0,
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def _kind_of_bar() -> Any:
    from importlib.util import find_spec

    # The widget of notebooks takes ipywidgets, and without it warns at every bar.
    if find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm as widget

        return widget
    from tqdm.std import tqdm as line

    return line
