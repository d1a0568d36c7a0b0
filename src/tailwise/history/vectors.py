"""Values of all layers as one vector of bytes, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.roles import NO_BLOCK, classify
from tailwise.core.recipe import digest_of
from tailwise.core.storage import json_of

#: A NaN that no computation gives: the layer has no value of this metric. An ordinary NaN is a value.
ABSENT = np.uint64(0x7FF8_7A11_0000_0001).astype("<u8")
_FLOATS, _BITS = np.dtype("<f8"), np.dtype("<u8")

#: `Layout.to_json` of a point that has no layers.
NO_LAYERS = "[]"

Values = Mapping[str, Mapping[str, float]]  # layer → metric → value


@dataclass(frozen=True)
class VectorPlace:
    """A layer of a layout."""

    name: str
    role: str
    block: int | None


@dataclass(frozen=True)
class VectorLayout:
    """Layers in the order of a vector."""

    places: tuple[VectorPlace, ...]

    @staticmethod
    def of_names(names: Iterable[str]) -> VectorLayout:
        """Roles and blocks are told from the names, as an audit does."""
        listed = list(names)
        blocks = number_blocks(listed)
        roles = [classify(name, 2, {}).role for name in listed]
        pairs = zip(listed, roles, strict=True)
        return VectorLayout(
            tuple(VectorPlace(name, role, None if role in NO_BLOCK else blocks.get(name)) for name, role in pairs)
        )

    @staticmethod
    def from_json(text: str) -> VectorLayout:
        """What `to_json` gave."""
        return VectorLayout(tuple(VectorPlace(*item) for item in json_of(text)))

    def to_json(self) -> str:
        """A line of text."""
        return json.dumps([[item.name, item.role, item.block] for item in self.places], ensure_ascii=False)

    @property
    def digest(self) -> str:
        """Equal for equal layouts."""
        return digest_of([[item.name, item.role, item.block] for item in self.places])


def packed(names: Sequence[str], values: Values) -> dict[str, bytes]:
    """Metric → the vector of its values over `names`."""
    metrics = dict.fromkeys(metric for name in names for metric in values[name])
    return {metric: _vector([values[name].get(metric) for name in names]) for metric in metrics}


def _vector(values: Sequence[float | None]) -> bytes:
    vector = np.array([0.0 if value is None else value for value in values], dtype=_FLOATS)
    vector.view(_BITS)[[value is None for value in values]] = ABSENT
    return vector.tobytes()


def unpacked(layout: VectorLayout, vectors: Mapping[str, bytes]) -> dict[str, dict[str, float]]:
    """Layer → metric → value, without what is absent."""
    values: dict[str, dict[str, float]] = {item.name: {} for item in layout.places}
    for metric, data in vectors.items():
        vector, gone = floats(data)
        for item, value, is_gone in zip(layout.places, vector.tolist(), gone.tolist(), strict=True):
            if not is_gone:
                values[item.name][metric] = value
    return values


def floats(data: bytes | Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The values of a vector (or of several, joined), and which of them are absent."""
    return np.frombuffer(data, dtype=_FLOATS), np.frombuffer(data, dtype=_BITS) == ABSENT
