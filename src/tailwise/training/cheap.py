"""The cheap measurement: norms and ratios of every matrix from a few products, on the device that trains."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.checkpoints.wrapped import is_sharded
from tailwise.training.product_core import Factors, core, spectral_norm, squared_change

if TYPE_CHECKING:
    from tailwise.checkpoints.matrices import WeightMatrix
    from tailwise.training.live import LiveModel, MatrixGroup, Tensors
    from tailwise.training.processes import Faults, Ranks


#: Rounds of power iteration from a random start, and from the vector of the last measurement.
COLD_ROUNDS, WARM_ROUNDS = 30, 4
_TINY = 1e-30
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LiveProducts:
    """A matrix by what it does: W·v and Wᵀ·u."""

    cols: int
    forward: Product  # (cols,) → (rows,)
    adjoint: Product  # (rows,) → (cols,)
    squared: torch.Tensor  # ‖W‖²_F, shape ()


def dense(matrix: torch.Tensor) -> LiveProducts:
    """An operator of a matrix (rows × cols), in float32 or better."""
    W = matrix if matrix.dtype == torch.float64 else matrix.float()
    return LiveProducts(W.shape[1], W.mv, W.T.mv, torch.linalg.vector_norm(W).square())


class SpectralNorms:
    """‖W‖₂ by power iteration, each matrix from where its last measurement ended.

    σ = ‖Wᵀu‖ with u = Wv/‖Wv‖ (Golub & Van Loan 2013, §8.2): a bound from below that rises with every round.
    """

    def __init__(self) -> None:
        self._starts: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, matrix: LiveProducts, device: torch.device) -> torch.Tensor:
        """‖W‖₂, shape (), still being computed where `device` is a GPU."""
        v = self._starts.get(name)  # where the last measurement ended
        warm = v is not None and v.shape == (matrix.cols,) and v.device == device
        if v is None or not warm:
            v = _random(name, matrix.cols).to(device)
        v = v.to(matrix.squared.dtype)
        start, sigma = v, v.new_zeros(())
        for _ in range(WARM_ROUNDS if warm else COLD_ROUNDS):
            u = matrix.forward(v)
            u = u / torch.linalg.vector_norm(u).clamp_min(_TINY)
            w = matrix.adjoint(u)
            sigma = torch.linalg.vector_norm(w)
            v = w / sigma.clamp_min(_TINY)
        # A matrix with NaN, or of zeros, must not spoil the start of later measurements.
        self._starts[name] = torch.where(torch.isfinite(sigma) & (sigma > 0), v, start)
        return sigma

    def forget(self) -> None:
        """Start every matrix at random again."""
        self._starts = {}


def _random(name: str, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    v = torch.randn(size, generator=generator)
    return torch.nn.functional.normalize(v, dim=0)


#: Weights of one step before: rows of them, or the factors that they are the product of.
Held = torch.Tensor | Factors
#: Bytes of earlier weights that are kept for one step; of a larger model, every k-th row.
KEPT_BYTES = 512 << 20
#: ‖W‖²_F, ‖W‖₂, and of the rows that were kept ‖ΔW‖²_F and ‖W‖²_F.
_COLUMNS = 4


@dataclass
class Pending:
    """Numbers that a device may still be computing."""

    names: list[str]
    values: dict[torch.device, tuple[list[int], torch.Tensor]]  # device → (rows, (rows, 4) on the CPU)
    events: list[Any]
    unchanged: tuple[str, ...] = ()  # matrices that were not measured again

    def result(self) -> dict[str, dict[str, float]]:
        """Matrix → metric → value; waits for the device."""
        for event in self.events:
            event.synchronize()
        measured = ((rows, values.tolist()) for rows, values in self.values.values())
        return {self.names[row]: _metrics(*numbers) for rows, columns in measured
                for row, numbers in zip(rows, columns, strict=True)}  # fmt: skip


def _metrics(squared: float, sigma: float, change: float, size: float) -> dict[str, float]:
    metrics = {"frobenius_norm": math.sqrt(squared) if squared >= 0 else math.nan, "spectral_norm": sigma}
    if squared != 0:  # a matrix of zeros has neither ratio
        # Power iteration errs to the low side; a matrix of rank 1 has exactly 1.
        metrics["stable_rank"] = max(squared / sigma**2, 1.0) if sigma > 0 else math.nan
    if size != 0 and (change >= 0 or math.isnan(change)):
        metrics["update_ratio"] = math.sqrt(change / size)
    return metrics


class Cheap:
    """Measures what is on the device, and remembers the weights of one step before."""

    def __init__(self, live: LiveModel, ranks: Ranks, faults: Faults) -> None:
        self._live, self._ranks, self._faults = live, ranks, faults
        self._norms = SpectralNorms()
        self._before: dict[str, list[Held]] = {}
        self._stamps: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self._stride = 1

    @torch.no_grad()
    def remember(self, tensors: Tensors) -> None:
        """Keep rows of the weights, to see what the next step changes."""
        self._before = {}
        groups = [group for group in self._live.groups if not self._frozen(group, tensors)]
        self._stride = max(1, -(-sum(group.nbytes for group in groups) // (KEPT_BYTES * self._ranks.world)))
        self._ranks.visit(groups, tensors, self._keep, self._faults)

    def _keep(self, group: MatrixGroup, whole: Tensors) -> None:
        for source, matrices in self._read(group, whole):
            self._before[source.name] = [_kept(matrix, self._stride) for matrix in matrices]

    @torch.no_grad()
    def measure(self, tensors: Tensors) -> Pending:
        """Enqueue every product; nothing is waited for but a few entries of what is frozen."""
        groups, same = self._changed(tensors)
        names = [source.name for group in groups for source in group.sources]
        place = {name: index for index, name in enumerate(names)}
        rows: dict[int, torch.Tensor] = {}

        def take(group: MatrixGroup, whole: Tensors) -> None:
            # A matrix that cannot be read is not finite, on all ranks.
            rows.update({place[source.name]: torch.full((_COLUMNS,), torch.nan) for source in group.sources})
            for source, matrices in self._read(group, whole):
                rows[place[source.name]] = self._numbers(source.name, matrices)

        self._ranks.visit(groups, tensors, take, self._faults)
        self._before = {}
        return _collected(names, self._shared(rows, len(names)), same)

    def forget(self) -> None:
        """Trust nothing of before: the model's tensors are others now."""
        self._stamps, self._before = {}, {}
        self._norms.forget()

    def _changed(self, tensors: Tensors) -> tuple[list[MatrixGroup], tuple[str, ...]]:
        """What to measure, and the matrices that are as they were. The same on every rank."""
        changed = [group for group in self._live.groups if not self._frozen(group, tensors)]
        same = {source.name for group in self._live.groups for source in group.sources}
        same -= {source.name for group in changed for source in group.sources}
        self._stamps = {group.tensors: stamp(group, tensors) for group in self._live.groups}
        return changed, tuple(sorted(same))

    def _frozen(self, group: MatrixGroup, tensors: Tensors) -> bool:
        return unchanged(group, tensors, self._stamps)

    def _read(self, group: MatrixGroup, whole: Tensors) -> Iterator[tuple[MatrixSource, list[WeightMatrix]]]:
        checkpoint = self._live.checkpoint(group, whole)
        for source in group.sources:
            yield source, load(source, checkpoint)

    def _numbers(self, name: str, matrices: list[WeightMatrix]) -> torch.Tensor:
        """The columns of one matrix, (4,); of pooled slices sums, and the largest norm."""
        parts = []
        for index, matrix in enumerate(matrices):
            old = self._before[name][index] if name in self._before else None
            if (factors := matrix.factors) is not None:
                parts.append(_of_factors(factors, old))
                continue
            W = dense_matrix(matrix)
            operator = dense(W)
            sigma = self._norms(f"{name}@{index}" if len(matrices) > 1 else name, operator, operator.squared.device)
            parts.append(torch.stack([operator.squared.float(), sigma.float(), *_change(old, W, self._stride)]))
        if len(parts) == 1:
            return parts[0]
        stacked = torch.stack(parts)  # (slices, 4)
        total = stacked.sum(0)
        total[1] = stacked[:, 1].max()
        return total

    def _shared(self, rows: dict[int, torch.Tensor], count: int) -> dict[torch.device, tuple[list[int], torch.Tensor]]:
        if self._ranks.sharded:
            device = self._ranks.device
            values = torch.zeros(count, _COLUMNS, device=device)
            for index, row in rows.items():
                values[index] = row
            return {device: (list(range(count)), self._ranks.summed(values))}
        by_device: dict[torch.device, list[int]] = {}
        for index, row in rows.items():
            by_device.setdefault(row.device, []).append(index)
        return {device: (places, torch.stack([rows[i] for i in places])) for device, places in by_device.items()}


def stamp(group: MatrixGroup, tensors: Tensors) -> tuple[Any, ...]:
    """What changes whenever a tensor of the group is written to by an optimizer, or replaced."""
    return tuple(_stamp(tensors[name]) for name in group.tensors)


def _stamp(tensor: torch.Tensor) -> tuple[Any, ...]:
    mark = id(tensor), tensor._version, tensor.requires_grad
    # On several ranks what to measure must be the same on all of them, and a rank sees a part only.
    return mark if tensor.requires_grad or is_sharded(tensor) else (*mark, tensor.data_ptr(), _sample(tensor))


def _sample(tensor: torch.Tensor) -> bytes:
    """A few entries of a tensor. Averages of weights are written to `.data`, which leaves the version as it was."""
    try:
        few = tensor.detach()[tuple(slice(None, None, max(1, size // 16)) for size in tensor.shape)]
        return few.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    except Exception:  # a kind of tensor of its own, such as one of low-bit codes: its version has to do
        return b""


def unchanged(group: MatrixGroup, tensors: Tensors, stamps: Mapping[tuple[str, ...], tuple[Any, ...]]) -> bool:
    """Whether no tensor of the group is trained, and none was written to since its stamp was taken.

    A trained tensor is not trusted: writing to `parameter.data` leaves its version as it was, and an optimizer may
    write to a few of its rows only.
    """
    if any(tensors[name].requires_grad for name in group.tensors):
        return False
    return stamps.get(group.tensors) == stamp(group, tensors)


def dense_matrix(matrix: WeightMatrix) -> torch.Tensor:
    """The matrix in its stored dtype; no copy where it is a whole tensor."""
    blocks = list(matrix.row_blocks(1 << 62))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _kept(matrix: WeightMatrix, stride: int) -> Held:
    """A copy of what the next step is held against: factors whole, of other matrices every `stride`-th row."""
    if (factors := matrix.factors) is not None:
        return factors[0].clone(), factors[1].clone()
    return dense_matrix(matrix)[::stride].clone()


def _of_factors(factors: Factors, old: Held | None) -> torch.Tensor:
    """The columns of a product of two factors, (4,), which is not formed."""
    inner = core(*factors)
    squared = torch.linalg.vector_norm(inner).square()
    moved = torch.full_like(squared, -1.0)
    if isinstance(old, tuple) and all(now.shape == before.shape for now, before in zip(factors, old, strict=True)):
        moved = squared_change(factors, old)
    return torch.stack([squared, spectral_norm(inner), moved, squared]).float()


def _change(old: Held | None, W: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """‖ΔW‖² and ‖W‖² of the rows that were kept, shapes (); −1 where none were."""
    rows = W[::stride]
    if not isinstance(old, torch.Tensor) or rows.shape != old.shape:
        none = torch.full((), -1.0, device=rows.device)
        return none, none
    change = torch.linalg.vector_norm(rows.float() - old.float()).square()
    return change, torch.linalg.vector_norm(rows.float()).square()


def _collected(
    names: list[str], values: dict[torch.device, tuple[list[int], torch.Tensor]], unchanged: tuple[str, ...]
) -> Pending:
    """The numbers on their way to the CPU."""
    events: list[Any] = []
    landed = {device: (rows, to_host(tensor, events)) for device, (rows, tensor) in values.items()}
    return Pending(names, landed, events, unchanged)


def to_host(tensor: torch.Tensor, events: list[Any]) -> torch.Tensor:
    """A copy on the CPU. From a GPU it is under way until the event that is added to `events`."""
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", copy=True)
    landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    landed.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    events.append(event)
    return landed
