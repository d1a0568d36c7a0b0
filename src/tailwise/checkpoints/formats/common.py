"""What all checkpoints of files and of memory share: checks before a read, and being closed."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import is_text

if TYPE_CHECKING:
    import torch


_LONGEST_NAME = 4096


class TensorStore(Checkpoint):
    """A checkpoint that checks names and ranges, then reads through `_rows`."""

    def __init__(
        self,
        uri: str,
        tensors: Mapping[str, TensorSpec],
        *,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        revision: str | None = None,
    ) -> None:
        if not tensors:
            raise UnreadableError(
                "holds no tensors",
                where=uri,
                fix="check that this is the model's weights and not a side file",
            )
        for name in tensors:
            # What tells roles by names takes time that grows faster than they do.
            if len(name) > _LONGEST_NAME or not is_text(name):
                what = "is not valid Unicode" if len(name) <= _LONGEST_NAME else f"has {len(name)} characters"
                fix = "save it with another name"
                raise UnreadableError(f"a tensor's name {what}: {ascii(name)[:120]}", where=uri, fix=fix)
        self.uri, self.tensors, self.revision = uri, dict(tensors), revision
        self.config, self.metadata = dict(config or {}), dict(metadata or {})
        self._closed = False

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Checkpoint`."""
        spec = self._spec(name)
        rows = spec.shape[0] if spec.shape else 1
        if not 0 <= start <= stop <= rows or not (spec.shape or start < stop):
            raise UnreadableError(
                f"rows {start}:{stop} do not exist in a tensor of {rows} rows",
                where=f"{self.uri}, tensor {name}",
                fix=f"ask for rows within 0:{rows}",
            )
        if self._closed:
            raise UnreadableError("the checkpoint is closed", where=self.uri, fix="open it again")
        return self._rows(spec, start, stop)

    def read(self, name: str) -> torch.Tensor:
        """See `Checkpoint`."""
        shape = self._spec(name).shape
        return self.read_rows(name, 0, shape[0] if shape else 1)

    def close(self) -> None:
        """See `Checkpoint`."""
        self._closed = True

    @abstractmethod
    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        """Rows of a tensor that exists, in a range that exists."""

    def _spec(self, name: str) -> TensorSpec:
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(self.tensors)} others"
            raise UsageError(f"there is no tensor named {name!r}", where=self.uri, fix=hint)
        return self.tensors[name]
