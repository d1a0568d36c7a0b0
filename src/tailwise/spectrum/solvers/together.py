"""Matrices of one size that several threads want solved, solved in one batch.

Whoever has the device solves all that wait beside him and have his size; while he does, others prepare and wait. So
batches fill by themselves as far as there are threads, and nobody waits for a clock.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import torch

from tailwise.spectrum.solvers.gpu_streams import finish, finish_stream
from tailwise.spectrum.solvers.symmetric import SOLVERS

#: Of one batch, in bytes; solvers need about three times as much.
MOST_BYTES = 4 << 30


class _Asked:
    def __init__(self, triangle: torch.Tensor) -> None:
        self.triangle: torch.Tensor | None = triangle
        self.values: torch.Tensor | None = None
        self.error: Exception | None = None


class Together:
    """A function of one lower triangle (m, m) that gives its eigenvalues (m,), for many threads at once."""

    def __init__(self, choose: Callable[[torch.Tensor], str], most_bytes: int = MOST_BYTES) -> None:
        self._choose, self._most_bytes = choose, most_bytes
        self._waiting: dict[tuple[int, torch.dtype], list[_Asked]] = defaultdict(list)
        self._guard, self._device = threading.Lock(), threading.Lock()
        self.batches: list[int] = []  # how many matrices each had

    def __call__(self, triangle: torch.Tensor) -> torch.Tensor:
        """Solve `triangle`, maybe beside others. What goes wrong with it is raised here."""
        asked, key = _Asked(triangle), (len(triangle), triangle.dtype)
        finish_stream(triangle.device)  # another thread may be the one that solves it
        with self._guard:
            self._waiting[key].append(asked)
        with self._device:
            if asked.triangle is not None:
                self._solve(self._batch(asked, key))
        if asked.error is not None:
            raise asked.error
        assert asked.values is not None  # noqa: S101 - one of the two is there
        return asked.values

    def _batch(self, asked: _Asked, key: tuple[int, torch.dtype]) -> list[_Asked]:
        """`asked`, and as many that wait beside it as fit."""
        size = key[0] ** 2 * torch.empty(0, dtype=key[1]).element_size()
        most = max(1, self._most_bytes // size)
        with self._guard:
            waiting = self._waiting[key]
            waiting.remove(asked)
            others, self._waiting[key] = waiting[: most - 1], waiting[most - 1 :]
        return [asked, *others]

    def _solve(self, batch: list[_Asked]) -> None:
        self.batches.append(len(batch))
        error = self._attempt(batch)
        if error is None:
            return
        # Of several, the memory or one of them is at fault: each has its own answer. By now what the batch took on the
        # device is free, which the attempt would hold as long as its exception was being handled.
        if len(batch) > 1:
            for asked in batch:
                self._solve([asked])
            return
        batch[0].error, batch[0].triangle = error, None

    def _attempt(self, batch: list[_Asked]) -> Exception | None:
        try:
            stacked = torch.stack([asked.triangle for asked in batch if asked.triangle is not None])
            solved = SOLVERS[self._choose(stacked)](stacked)
            # Before triangles are let go: their memory belongs to the streams that made them.
            finish(stacked.device)
            for asked, values in zip(batch, solved, strict=True):
                asked.values, asked.triangle = values, None
        except Exception as error:
            return error.with_traceback(None)  # its frames hold the batch
        return None
