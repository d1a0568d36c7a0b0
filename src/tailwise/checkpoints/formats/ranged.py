"""What formats share whose tensors are byte ranges of files: they can be read anywhere by address and offset."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Self

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.formats.common import TensorStore
from tailwise.checkpoints.spans import HeldFile, Span


class RangedStore(TensorStore):
    """A checkpoint whose every tensor is one range of one file."""

    _files: tuple[ByteSource, ...]
    _places: dict[str, tuple[ByteSource, Any]]  # tensor → its file, and what the format knows of its place there

    def identity(self, name: str) -> str | None:
        """See `Checkpoint`."""
        spec = self._spec(name)
        content = self._places[name][0].identity()
        return None if content is None else f"{content}:{self._offset(name)}:{spec.nbytes}"

    def part(self, names: Iterable[str]) -> Self:
        """See `Checkpoint`. The files are those of the whole; close that one."""
        kept = {name: self._spec(name) for name in names}
        found = copy.copy(self)
        found.tensors = kept
        found._places = {name: self._places[name] for name in kept}
        found._files = tuple({id(file): file for file in (found._places[name][0] for name in kept)}.values())
        return found

    def fetch(self) -> None:
        """See `Checkpoint`."""
        for file in self._files:
            here = [name for name, (other, _) in self._places.items() if other is file]
            spans: list[Span] = [(self._offset(name), self.tensors[name].nbytes) for name in here]
            held = HeldFile(file, spans)
            self._places |= {name: (held, self._places[name][1]) for name in here}

    def close(self) -> None:
        """See `Checkpoint`."""
        super().close()
        for file in self._files:
            file.close()

    @abstractmethod
    def _offset(self, name: str) -> int:
        """Where in its file a tensor begins."""
