"""What tensors take in a number format: bits per weight, bytes, and how a plan's bits follow depth. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import DTYPE_BITS
from tailwise.checkpoints.orientation import is_stored_in_out
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import NumberFormat

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.audits.rows import LayerRow
    from tailwise.compression.plans.candidates import Candidate
    from tailwise.compression.plans.decision import Decision
    from tailwise.compression.plans.entries import Entries


_FEW = 0.1  # of the tensors
_CHANCE = 0.05
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def is_packed(row: LayerRow) -> bool:
    """Whether a row is of codes and scales, not of several real tensors."""
    return len(row.tensors) > 1 and row.kind != "lora" and row.dtype not in _PLAIN


def tensor_of(row: LayerRow) -> str:
    """The stored tensor of a row; of a packed weight, the name that it has once it is dequantized."""
    if is_packed(row):
        return f"{row.name.partition('#')[0].partition('[')[0]}.weight"
    return row.tensors[0] if row.tensors else row.name


def shape_of(item: Candidate, config: Mapping[str, Any]) -> tuple[int, ...]:
    """(out, in) of the matrix that a stored tensor is quantized as, (count, out, in) of stacked experts.

    Fused parts are one matrix, kernels are flattened to (out, in·k). Empty where the parts have different inputs.
    """
    if item.kind == "conv":
        rows = item.parts[0][0]
        return rows, item.n_params // rows
    stacked = item.kind == "expert" and len(item.parts) > 1
    first = item.parts[0][:2]
    turned = is_stored_in_out(item.tensor, (len(item.parts), *first) if stacked else first, item.role, config)
    parts = [(cols, rows) if turned else (rows, cols) for rows, cols, _ in item.parts]
    if len({inputs for _, inputs in parts}) != 1:
        return ()
    inputs = parts[0][1]
    if not stacked:
        return item.n_params // inputs, inputs
    return (len(parts), *parts[0]) if len(set(parts)) == 1 else ()


def stack_shape(item: Candidate, config: Mapping[str, Any]) -> tuple[int, ...]:
    """(count, out, in) of the matrices in a stack of experts, gate and up of one together; empty for all else."""
    shape = shape_of(item, config)
    if len(shape) != 3:
        return ()
    return item.matrices, item.n_params // (item.matrices * shape[-1]), shape[-1]


def has_whole_groups(chosen: NumberFormat, shape: tuple[int, ...]) -> bool:
    """Whether the group of a format divides the inputs of a matrix: else the last one of a row is shorter.

    Where the shape is not known (empty), it is taken to.
    """
    return chosen.group_size is None or not shape or shape[-1] % chosen.group_size == 0


def bits_per_weight(chosen: str | NumberFormat, shape: tuple[int, ...]) -> float:
    """Stored bits over entries, scales and zero points counted, of (out, in) or (count, out, in)."""
    number_format = parse_format(chosen) if isinstance(chosen, str) else chosen
    return number_format.bits_per_weight(shape[-2], shape[-1])


def bits_of(decision: Decision) -> float:
    """Bits per weight of an entry with a format, nominal ones where its shape is not known; 0 without a format."""
    cast = decision.treatment.cast
    return 0.0 if cast is None else cast.bits(decision.shape)


def mean_bits(decisions: Iterable[Decision]) -> float:
    """Σ bits·d / Σ d, d the parameters; 0 where there are none."""
    weighted = [(decision.n_params, bits_of(decision)) for decision in decisions]
    total = sum(size for size, _ in weighted)
    return sum(size * bits for size, bits in weighted) / total if total else 0.0


def kept_bytes(audit: Audit, planned: Iterable[str]) -> int:
    """Bytes of all tensors of the model that a plan does not name, as they are stored."""
    return round(sum(_bytes(row) for row in _kept(audit, planned)))


def kept_parameters(audit: Audit, planned: Iterable[str]) -> int:
    """Parameters of all tensors of the model that a plan does not name."""
    return sum(row.n_params for row in _kept(audit, planned))


def whole_model_words(plan: Entries) -> str:
    """Bits per weight and bytes of the whole model with what a plan leaves as it is; "" where that is not known."""
    parameters, kept = (plan.budget.get(name) for name in ("model_parameters", "kept_bytes"))
    if not plan.quantizes or not isinstance(parameters, int) or not isinstance(kept, int):
        return ""
    header = plan.budget.get("header_bytes")
    nbytes = round(mean_bits(plan) * plan.n_params / 8) + kept
    return in_all_words(nbytes, parameters, header if isinstance(header, int) else None)


def in_all_words(nbytes: int, parameters: int, header: int | None = None) -> str:
    """`whole model: 7.86 bits per weight of 7,999,744 parameters, tensors of 7.9 MB; …`."""
    from rich.filesize import decimal

    bits, file = 8 * nbytes / max(1, parameters), ""
    if header is not None:
        file = f" (a file of at most {decimal(nbytes + header)}, header and tokenizer counted)"
    return (
        f"whole model: {bits:.3f} bits per weight of {parameters:,} parameters, tensors of {decimal(nbytes)}{file}; "
        "with the embedding and all else that the plan leaves as it is"
    )


def formats_words(plan: Entries) -> str:
    """`formats: int4-g64 180 tensors, 56.4 MB · q5_0 (for q4_k) 30, 8.2 MB`, most bytes first; "" of a single one.

    A format stands in where the blocks of the one that was chosen do not divide the inputs.
    """
    from rich.filesize import decimal

    many, sizes = Counter[str](), Counter[str]()
    for decision in plan:
        cast = decision.treatment.cast
        if cast is None:
            continue
        chosen, held = cast.number_format.name, cast.fitted(decision.shape).name
        name = held if held == chosen else f"{held} (for {chosen})"
        many[name] += 1
        sizes[name] += round(cast.bits(decision.shape) * decision.n_params / 8)
    if len(many) < 2:
        return ""
    parts = [f"{name} {many[name]}, {decimal(nbytes)}" for name, nbytes in sizes.most_common()]
    return f"formats, of how many tensors: {' · '.join(parts)}"


def _kept(audit: Audit, planned: Iterable[str]) -> list[LayerRow]:
    names = set(planned)
    planned_rows = [row for row in audit.rows if names & {*row.tensors, tensor_of(row)}]
    # The shape of a packed weight, say, has a row of its own.
    inside = {row.name for row in planned_rows} | {member for row in planned_rows for member in row.tensors}
    return [row for row in audit.rows if row.status != "SHARED" and not inside & {row.name, *row.tensors}]


def _bytes(row: LayerRow) -> float:
    # Rows of one fused tensor each state the bytes of all of it; packed ones have no dtype of so many bits.
    bits = DTYPE_BITS.get(row.dtype)
    return row.nbytes if bits is None or len(row.tensors) > 1 else row.n_params * bits / 8


def depth_words(plan: Entries) -> str:
    """How the mean bits of blocks follow depth: Spearman's rank correlation with the block number."""
    blocks = sorted({decision.block for decision in plan if decision.block is not None})
    means = [round(mean_bits(d for d in plan if d.block == block), 6) for block in blocks]
    if len(set(means)) < 2:
        return f"against depth: nothing to correlate ({len(blocks)} blocks, one number of bits)"
    from scipy.stats import spearmanr

    formats = Counter(decision.format for decision in plan if decision.block is not None)
    others = 1 - max(formats.values()) / sum(formats.values())  # tensors of another format than most
    found = spearmanr(blocks, means)
    if others <= _FEW and not found.pvalue < _CHANCE:
        return f"against depth: {others:.0%} of the tensors have another format than most, which depth does not explain"
    rho = float(found.statistic)
    kind = "later blocks get more bits" if rho > 0 else "later blocks get fewer bits"
    return f"against depth: Spearman ρ = {rho:+.2f} over {len(blocks)} blocks; {kind}"
