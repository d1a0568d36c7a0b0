"""The dashboard of a sweep while it runs: live on a terminal, a line for each model elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tailwise.history.sweep.sweeping import SweepListener

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from tailwise.audits.run import Step
    from tailwise.history.sweep.catalogue import ClaimedModel
    from tailwise.history.sweep.one_model import ModelOutcome
    from tailwise.history.sweep.status import SweepStatus


#: Seconds between two looks at the catalogue, which others write to as well.
_LOOK_EVERY = 2.0


class SweepScreen:
    """Takes what happens and draws it."""

    def __init__(self, console: Console, look: Callable[[], SweepStatus], live: Live | None) -> None:
        self._console, self._look, self._live = console, look, live
        self._status: SweepStatus | None = None
        self._looked, self._model = float("-inf"), ""

    def begun(self, claim: ClaimedModel) -> Callable[[Step], None]:
        """A model is under way."""
        self._model = claim.model
        self._draw("reading headers")
        return self._step

    def ended(self, outcome: ModelOutcome) -> None:
        """A model is finished."""
        from tailwise.report.sweep import outcome_line

        self._console.print(outcome_line(outcome), soft_wrap=True)
        self._looked = float("-inf")
        self._draw("")

    def _step(self, step: Step) -> None:
        self._draw(f"{step.done}/{step.total} matrices")

    def _draw(self, detail: str) -> None:
        if self._live is None:
            return
        from tailwise.report.sweep import dashboard

        if self._status is None or time.monotonic() > self._looked + _LOOK_EVERY:
            self._status, self._looked = self._look(), time.monotonic()
        self._live.update(dashboard(self._status, f"{self._model}: {detail}" if detail else ""))


@contextmanager
def screen(look: Callable[[], SweepStatus], *, stderr: bool) -> Iterator[SweepListener]:
    """What draws a sweep while the block runs; the dashboard leaves nothing behind."""
    from rich.live import Live

    from tailwise.report.terminal import console

    out = console(stderr=stderr)
    if not out.is_terminal:
        shown = SweepScreen(out, look, None)
        yield SweepListener(shown.begun, shown.ended)
        return
    with Live(console=out, transient=True, refresh_per_second=4) as live:
        shown = SweepScreen(out, look, live)
        yield SweepListener(shown.begun, shown.ended)
