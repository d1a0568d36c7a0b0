"""Which layer of one audit is which of the other: by name, by content, then by place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow

Pair = tuple[LayerRow, LayerRow]
Key = Callable[[LayerRow], Hashable]


@dataclass
class Matching:
    """The layers of two audits, side by side."""

    pairs: list[Pair] = field(default_factory=list)  # in the order of the second audit
    added: list[LayerRow] = field(default_factory=list)
    missing: list[LayerRow] = field(default_factory=list)
    renamed: list[Pair] = field(default_factory=list)  # also among `pairs`
    reshaped: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def match(before: Audit, after: Audit) -> Matching:
    """Pair the measured layers of two audits.

    Equal names go together, or are reshaped. Of the rest, equal content (where only one layer on each side has it)
    is a rename; then the same name under a longer or shorter prefix; then the only layer of a role, block and shape
    on either side. What stays ambiguous is added and missing.
    """
    old = {layer.row.name: layer.row for layer in before}
    new = {layer.row.name: layer.row for layer in after}
    matching = Matching()
    pairs = {name: (old[name], row) for name, row in new.items() if name in old and shape(old[name]) == shape(row)}
    matching.reshaped = [(old[name], row) for name, row in new.items() if name in old and name not in pairs]
    left = [row for name, row in old.items() if name not in new]
    right = [row for name, row in new.items() if name not in old]
    for rename in (_by_content, _by_suffix, _by_place):
        for one, other in rename(left, right):
            pairs[other.name] = (one, other)
            matching.renamed.append((one, other))
            left.remove(one)
            right.remove(other)
    matching.pairs = [pairs[name] for name in new if name in pairs]
    matching.missing, notes = _really_gone(left, after, "was measured before and now is")
    matching.added, more = _really_gone(right, before, "is measured now and before was")
    matching.notes = notes + more
    return matching


def shape(row: LayerRow) -> tuple[int, int, int]:
    """Rows, columns and slices: what two layers must share to be subtracted."""
    return row.rows, row.cols, row.slices


def shape_text(row: LayerRow) -> str:
    """`256×704`, or `64×64 ×9` for nine slices."""
    return f"{row.rows}×{row.cols}" + (f" ×{row.slices}" if row.slices > 1 else "")


def _by_content(left: list[LayerRow], right: list[LayerRow]) -> list[Pair]:
    return _unambiguous(left, right, lambda row: (row.digest, shape(row)) if row.digest else None)


def _by_place(left: list[LayerRow], right: list[LayerRow]) -> list[Pair]:
    # `other` is no role: two layers that no table entry knows need not have anything in common.
    return _unambiguous(
        left, right, lambda row: None if row.role == "other" else (row.role, row.block, row.kind, shape(row))
    )


def _by_suffix(left: list[LayerRow], right: list[LayerRow]) -> list[Pair]:
    """`model.layers.0.q` and `base.model.layers.0.q`: the same name but for a prefix."""
    known = {(row.name, shape(row)): row for row in left}
    candidates = [(known[key], row) for row in right for key in _shorter(row) if key in known]
    mirror = {(row.name, shape(row)): row for row in right}
    candidates += [(row, mirror[key]) for row in left for key in _shorter(row) if key in mirror]
    uses = [id(row) for pair in candidates for row in pair]
    return [pair for pair in candidates if uses.count(id(pair[0])) == uses.count(id(pair[1])) == 1]


def _shorter(row: LayerRow) -> Iterable[tuple[str, tuple[int, int, int]]]:
    """The row's name without its first one, two, three components; at least two stay."""
    parts = row.name.split(".")
    for start in range(1, min(4, len(parts) - 1)):
        yield ".".join(parts[start:]), shape(row)


def _unambiguous(left: list[LayerRow], right: list[LayerRow], key: Key) -> list[Pair]:
    first, second = _alone(left, key), _alone(right, key)
    return [(first[value], row) for value, row in second.items() if value in first]


def _alone(rows: list[LayerRow], key: Key) -> dict[Hashable, LayerRow]:
    grouped: dict[Hashable, list[LayerRow]] = {}
    for row in rows:
        if (value := key(row)) is not None:
            grouped.setdefault(value, []).append(row)
    return {value: group[0] for value, group in grouped.items() if len(group) == 1}


def _really_gone(rows: list[LayerRow], other: Audit, verb: str) -> tuple[list[LayerRow], list[str]]:
    """Rows without a counterpart, and a note for those that the other audit lists without numbers."""
    listed = {row.name.removesuffix(".weight"): row for row in other.unmeasured}
    gone, notes = [], []
    for row in rows:
        twin = listed.get(row.name.removesuffix(".weight"))
        if twin is None:
            gone.append(row)
        else:
            notes.append(f"{row.name} {verb} {twin.status}: {twin.reason}")
    return gone, notes
