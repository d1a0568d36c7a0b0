"""Safetensors: one file, or a model in several shards; from a local disk or by byte ranges from a remote address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.bytesource import AT_ONCE, ByteSource
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import RangedStore, torch_dtype
from tailwise.checkpoints.sniff import Header, read_header
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch


class SafetensorsCheckpoint(RangedStore):
    """The tensors of one or more safetensors files."""

    format = "safetensors"

    def __init__(
        self,
        uri: str,
        shards: Sequence[ByteSource],
        *,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        homes: Mapping[str, ByteSource] | None = None,
    ) -> None:
        """`homes`: by name the file that an index gives for a tensor, which holds where another file has one too."""
        self._files, self._homes = tuple(shards), homes or {}
        superseded: set[str] = set()
        self._places: dict[str, tuple[ByteSource, int]] = {}
        tensors: dict[str, TensorSpec] = {}
        metadata: dict[str, str] = {}
        for shard, header in zip(self._files, _headers(self._files), strict=True):
            superseded |= self._add(shard, header, tensors)
            metadata.update(header.metadata)
        super().__init__(uri, tensors, config=config, metadata=metadata, revision=revision)
        if superseded:
            few = ", ".join(sorted(superseded)[:5])
            self.notes += (
                f"not read, for the index has them in another file: other copies of {len(superseded)} tensors ({few})",
            )

    def _add(self, shard: ByteSource, header: Header, tensors: dict[str, TensorSpec]) -> set[str]:
        """Take the tensors of a file; the names of those that an earlier one has too, and that the index places."""
        twice = {name for name in header.specs if name in tensors}
        for name, spec in header.specs.items():
            home = self._homes.get(name)
            if name in twice and home not in (shard, self._places[name][0]):
                raise UnreadableError(
                    f"the tensor {name} is in two files: {self._places[name][0].name} and {shard.name}",
                    fix="the folder holds two copies of a model: open one file, or add its index.json",
                )
            if name not in twice or home is shard:
                tensors[name] = spec
                self._places[name] = shard, header.offsets[name]
        return twice

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        import torch

        shard, offset = self._places[spec.name]
        dtype = torch_dtype(spec.dtype, where=f"{shard.name}, tensor {spec.name}")
        shape = (stop - start, *spec.shape[1:]) if spec.shape else ()
        row_bytes = spec.nbytes // max(spec.shape[0] if spec.shape else 1, 1)
        block = torch.empty(row_bytes * (stop - start), dtype=torch.uint8)
        if block.numel():
            shard.read_into(block.numpy().data, offset + start * row_bytes)
        return block.view(dtype).reshape(shape)

    def _offset(self, name: str) -> int:
        return self._places[name][1]


def _headers(shards: Sequence[ByteSource]) -> list[Header]:
    if len(shards) == 1:
        return [read_header(shards[0])]
    # Remote headers are a round trip each, and a large model has a hundred shards.
    with ThreadPoolExecutor(min(AT_ONCE, len(shards) or 1)) as pool:
        return list(pool.map(read_header, shards))
