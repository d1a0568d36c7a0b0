"""A lease that is extended while the work goes on."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from tailwise.core.errors import TailwiseError

if TYPE_CHECKING:
    from tailwise.history.sweep.catalogue import Catalogue, ClaimedModel

_log = logging.getLogger(__name__)


class Lease:
    """Extends a claim's lease from a thread of its own while the block runs."""

    def __init__(self, catalogue: Catalogue, claim: ClaimedModel, seconds: float) -> None:
        self._catalogue, self._claim, self._seconds = catalogue, claim, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tailwise-lease", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._seconds / 3):
            try:
                held = self._catalogue.extend(self._claim, self._seconds)
            except TailwiseError as error:
                _log.warning("the lease of %s could not be extended: %s", self._claim.model, error)
                continue
            if not held:
                _log.warning("the lease of %s ran out, and another worker has it", self._claim.model)
                self.lost = True
                return
