"""Which of an opened checkpoint's tensors are taken: the weights, or the part that was asked for."""

from __future__ import annotations

from tailwise.checkpoints.averages import averaged_prefixes
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.core.errors import UnreadableError, unknown_name

_COMPLEX = (
    "its entries are complex numbers, which are not measured; give real and imaginary parts as matrices of their own"
)


def choose(checkpoint: Checkpoint, part: str | None) -> None:
    """Narrow `checkpoint` to the tensors whose names begin with `part`, or leave averaged weights out.

    A format that keeps parts apart itself (`Checkpoint.chosen`) has done so already. `UsageError` with the parts that
    there are where none is of that name, `UnreadableError` where what is left has no values.
    """
    if part is None or checkpoint.chosen != part:
        _choose_flat(checkpoint, part)
    _check_values(checkpoint)
    complex_ones = [
        s.name for s in checkpoint.tensors.values() if len(s.shape) > 1 and s.dtype.startswith(("C64", "COMPLEX"))
    ]
    if complex_ones:
        checkpoint.unsupported = {**dict.fromkeys(complex_ones, _COMPLEX), **checkpoint.unsupported}


def _choose_flat(checkpoint: Checkpoint, part: str | None) -> None:
    names = list(checkpoint.tensors)
    if part is not None:
        kept = [name for name in names if name.startswith(f"{part}.")]
        if not kept:
            known = {*checkpoint.parts, *(name.partition(".")[0] for name in names if "." in name)}
            raise unknown_name("part", part, known)
        checkpoint.chosen = part
        _keep(checkpoint, kept)
        return
    averages = averaged_prefixes(names)
    if averages:
        checkpoint.parts = tuple(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
        said = f"took the weights and left out their moving average, {', '.join(averages)}"
        checkpoint.notes += (f"{said} (--part {averages[0]} reads it)",)
        _keep(checkpoint, [name for name in names if name.partition(".")[0] not in averages])


def _keep(checkpoint: Checkpoint, names: list[str]) -> None:
    checkpoint.tensors = {name: checkpoint.tensors[name] for name in names}
    kept = checkpoint.tensors
    checkpoint.shared = {a: b for a, b in checkpoint.shared.items() if a in kept and b in kept}


def _check_values(checkpoint: Checkpoint) -> None:
    """Refuse what ZeRO-3 leaves in the place of weights: tensors of the right names without entries."""
    empty = [spec.name for spec in checkpoint.tensors.values() if 0 in spec.shape]
    if empty and not any(len(spec.shape) > 1 and spec.numel for spec in checkpoint.tensors.values()):
        raise UnreadableError(
            f"{len(empty)} of its {len(checkpoint.tensors)} tensors are empty and none is a matrix: "
            "DeepSpeed's ZeRO-3 keeps the weights in other files",
            where=checkpoint.uri,
            fix="join them with zero_to_fp32.py, which lies in the checkpoint's folder: "
            "python zero_to_fp32.py FOLDER OUTPUT --safe_serialization; then give OUTPUT",
        )
    if len(empty) > 1:
        checkpoint.notes += (
            f"{len(empty)} tensors are empty, as ZeRO-3 leaves those that it did not gather: {', '.join(empty[:3])}…",
        )
