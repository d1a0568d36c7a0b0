"""Rows of an audit whose weight is packed: the tensor that they decode to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailwise.audits.rows import LayerRow

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def is_packed(row: LayerRow) -> bool:
    """Whether a row is of codes and scales, not of several real tensors."""
    return len(row.tensors) > 1 and row.kind != "lora" and row.dtype not in _PLAIN


def tensor_of(row: LayerRow) -> str:
    """The stored tensor of a row; of a packed weight, the name that it has once it is dequantized."""
    if is_packed(row):
        return f"{row.name.partition('#')[0].partition('[')[0]}.weight"
    return row.tensors[0] if row.tensors else row.name
