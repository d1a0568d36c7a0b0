"""What must hold of every animal, as sentences about what does not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from zoo.entry import Entry, Specimen
from zoo.reading import Seen, View, read

TOLERANCE = 1e-5  # of a Gram matrix; layers compute in float32


@dataclass(frozen=True)
class Findings:
    """What was found out about one entry."""

    faults: tuple[str, ...]  # one sentence each; none where all is well
    measured: float  # share of the stored elements that are measured, of those in tensors of two axes or more
    named: float  # share of the measured elements whose role is known
    proved: float  # share of the measured elements that were held against a live layer


def examine(entry: Entry, specimen: Specimen) -> Findings:
    """Every law on one checkpoint: on the live model, on each file, and between them."""
    files = [read(path, specimen.only, **specimen.options) for path in specimen.files]
    live = read(specimen.model, specimen.only) if specimen.model is not None else files[0]
    faults: list[str] = []
    if specimen.model is not None or not entry.refused:
        faults += [*_wrong(live, specimen), *_blocks(entry, live), *_unaccounted(live)]
    for path, file in zip(specimen.files, files, strict=True):
        found = [*_unaccounted(file)]
        found += _refusal(entry, file) if entry.refused else [] if live is file else _differing(live, file)
        faults += [f"{path.suffix or 'folder'}: {fault}" for fault in found]
    return Findings(tuple(faults), *_shares(live, specimen))


def _refusal(entry: Entry, view: View) -> Iterator[str]:
    """What is refused is refused altogether, with a reason that names it."""
    yield from (f"{seen.name}: measured, though it should be refused" for seen in view.seen)
    if not any(entry.refused in reason for reason in view.listed.values()):
        yield f"no reason says {entry.refused!r}: {sorted(set(view.listed.values()))}"


def _wrong(view: View, specimen: Specimen) -> Iterator[str]:
    """The parts of a matrix make the map of its layer: all of it, once, with its inputs as inputs.

    With parts Pᵢ of the outputs and the map M this is Σ Pᵢᵀ·Pᵢ = Mᵀ·M; with parts of the inputs, Σ Pᵢ·Pᵢᵀ = M·Mᵀ.
    """
    parts: dict[str, list[Seen]] = defaultdict(list)
    for seen in view.seen:
        parts[seen.whole].append(seen)
    for key, wanted in specimen.maps.items():
        if key not in parts:
            if any(f".{name}".endswith((f".{key}", f".{key}.weight")) for name in view.shared):
                continue
            yield f"{key}: not measured ({_reason(view, key)}); the layer applies {_about(wanted)}"
        elif not _makes(parts[key], wanted):
            got = ", ".join(f"{_about(seen.as_map)} as {seen.name}" for seen in parts[key])
            yield f"{key}: measured {got}; the layer applies {_about(wanted)}"
        role = specimen.roles.get(key)
        for seen in parts.get(key, ()):
            if role is not None and seen.role != role:
                yield f"{seen.name}: has the role {seen.role} for {role}"
    yield from (f"{tensor}: measured as {sorted(names)}" for tensor, names in _strays(view, specimen).items())
    yield from (f"{seen.name}: measured, and is no map" for seen in view.seen if specimen.never & set(seen.tensors))


def _reason(view: View, key: str) -> str:
    inside = [
        reason for name, reason in view.listed.items() if name.startswith(f"{key}.") and not name.endswith("bias")
    ]
    return view.listed.get(key) or next(iter(inside), "not a word about it")


def _strays(view: View, specimen: Specimen) -> Mapping[str, set[str]]:
    """Tensors that a layer with a map is stored in, measured under names of their own (a scale, a direction)."""
    layers = {key.partition("[")[0] for key in specimen.maps} - {"weight"}
    found: dict[str, set[str]] = defaultdict(set)
    for seen in view.seen:
        inside = [key for key in layers if seen.whole.startswith(f"{key}.")]
        if inside and seen.whole not in specimen.maps and seen.whole.partition("[")[0] not in layers:
            found[max(inside, key=len)].add(seen.name)
    return found


def _makes(parts: Sequence[Seen], wanted: torch.Tensor) -> bool:
    lying = [seen.as_map for seen in parts]
    if len(lying) == 1 and lying[0].shape == wanted.shape and _near(lying[0], wanted):
        return True
    if all(matrix.shape[1] == wanted.shape[1] for matrix in lying):
        return _near(sum((matrix.T @ matrix for matrix in lying), torch.zeros(())), wanted.T @ wanted)
    # Parts of the inputs: what two layers give is added up by one.
    if all(matrix.shape[0] == wanted.shape[0] for matrix in lying):
        return _near(sum((matrix @ matrix.T for matrix in lying), torch.zeros(())), wanted @ wanted.T)
    return False


def _near(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool(torch.linalg.norm(got - wanted) <= TOLERANCE * torch.linalg.norm(wanted))


def _blocks(entry: Entry, view: View) -> Iterator[str]:
    """Blocks are counted without gaps, and there are as many as the table says."""
    found = {seen.block for seen in view.seen} - {None}
    if entry.blocks is not None and found != set(range(entry.blocks)):
        yield f"has blocks {sorted(found)} for {entry.blocks} of them"


def _unaccounted(view: View) -> Iterator[str]:
    """Every stored tensor is measured or listed, and none is both; no matrix has the name of another."""
    measured = {tensor for seen in view.seen for tensor in seen.tensors}
    yield from (f"{name}: neither measured nor listed" for name in view.stored
                if name not in measured and name not in view.listed)  # fmt: skip
    yield from (f"{name}: both measured and listed" for name in measured & set(view.listed)
                if not view.listed[name].startswith("NOT_A_MATRIX: part of"))  # fmt: skip
    repeated = Counter(seen.name for seen in view.seen)
    yield from (f"{name}: {count} matrices have this name" for name, count in repeated.items() if count > 1)


def _differing(live: View, file: View) -> Iterator[str]:
    """A file holds the matrices of the model, whatever it calls them, with their roles and blocks."""
    ours, theirs = Counter(map(_sign, live.seen)), Counter(map(_sign, file.seen))
    shown = {_sign(seen): seen.name for seen in (*live.seen, *file.seen)}
    for sign in (ours - theirs) | (theirs - ours):
        where = "live" if sign in ours - theirs else "file"
        role, block, axis, shape, _ = sign
        yield f"{shown[sign]}: only in the {where} as {role} of block {block}, {shape}, inputs on axis {axis}"


def _sign(seen: Seen) -> tuple[str, int | None, int, tuple[int, ...], str]:
    gram = seen.matrix @ seen.matrix.T if seen.matrix.shape[0] <= seen.matrix.shape[1] else seen.matrix.T @ seen.matrix
    values = f"{seen.matrix.norm():.4e} {gram.norm():.4e}"
    return seen.role, seen.block, seen.input_axis, tuple(seen.matrix.shape), values


def _shares(view: View, specimen: Specimen) -> tuple[float, float, float]:
    measured = sum(seen.numel for seen in view.seen)
    shared = sum(view.stored.get(name, 0) for name in view.shared)
    total = max(sum(view.stored.values()) - shared, measured, 1)
    named = sum(seen.numel for seen in view.seen if seen.role != "other")
    proved = sum(seen.numel for seen in view.seen if seen.whole in specimen.maps)
    return measured / total, named / max(measured, 1), proved / max(measured, 1)


def _about(matrix: torch.Tensor) -> str:
    rows, cols = matrix.shape
    return f"{rows}×{cols} with σ₁ {torch.linalg.matrix_norm(matrix, 2):.4g}"
