"""Weights that a module computes from what it stores: torch's weight norm, spectral norm, orthogonal maps and masks.

- Weight norm (Salimans and Kingma 2016), old names `weight_g`, `weight_v`, new ones
  `parametrizations.weight.original0`,
  `original1`: W = g · v / ‖v‖, the norm over all axes on which g has one entry.
- Spectral norm (Miyato et al. 2018), old `weight_orig`, `weight_u`, `weight_v`, new `original`, `0._u`, `0._v`:
  W = W₀ / (uᵀ W₀ v) with the stored vectors, as in evaluation.
- Orthogonal (`original`, `0.base`): the matrix that torch's default map gives, base · exp(A) with A skew.
- I-BERT's fake quantization: the weight as it stands; `weight_integer` and its factors are made of it anew.
- Masked (torch.nn.utils.prune): W = `weight_orig` ∘ `weight_mask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Aside, Claim, Read, Refused, Siblings
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

MARKS = ("weight", "centroids")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class WeightNorm:
    """W = g · v / ‖v‖."""

    shape: tuple[int, ...]
    g: str
    v: str
    axes: tuple[int, ...]  # over which the norm is taken
    dtype: str

    @property
    def by_rows(self) -> bool:
        """Rows have norms of their own where the norm is not taken over them."""
        return 0 not in self.axes

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32; float64 where it is stored so."""
        import torch

        whole = not self.by_rows
        first, last = (0, self.shape[0]) if whole else (start, stop)
        wide = torch.float64
        v = checkpoint.read_rows(self.v, first, last).to(wide)
        g = checkpoint.read(self.g).to(wide)
        if g.ndim == v.ndim and not whole:
            g = g[first:last]
        norm = torch.linalg.vector_norm(v, dim=self.axes, keepdim=True)
        weights = _rounded(v * (g / norm), self.dtype)
        return weights[start:stop] if whole else weights


@dataclass(frozen=True)
class SpectralNorm:
    """W = W₀ / (uᵀ W₀ v)."""

    shape: tuple[int, ...]
    original: str
    u: str
    v: str
    axis: int  # that u runs along
    dtype: str
    by_rows: bool = False

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32; float64 where it is stored so."""
        import torch

        W = checkpoint.read(self.original).to(torch.float64)
        flat = W.movedim(self.axis, 0).flatten(1)
        u, v = (checkpoint.read(name).to(torch.float64) for name in (self.u, self.v))
        return _rounded(W[start:stop] / torch.dot(u, flat @ v), self.dtype)


@dataclass(frozen=True)
class Orthogonal:
    """The orthogonal matrix of torch's default map for square matrices, base · exp(A), A = X − Xᵀ of X's lower part."""

    shape: tuple[int, ...]
    original: str
    base: str
    dtype: str
    by_rows: bool = False

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32; float64 where it is stored so."""
        import torch

        X, base = (checkpoint.read(name).to(torch.float64) for name in (self.original, self.base))
        turned = X.shape[0] < X.shape[1]
        X = X.T if turned else X
        n, k = X.shape
        lower = X.tril()
        if n != k:
            lower = torch.cat((lower, lower.new_zeros(n, n - k)), 1)
        base = base.T if turned and base.shape[0] < base.shape[1] else base
        Q = (base if base.shape[0] == n else base.T) @ torch.linalg.matrix_exp(lower - lower.T)[:, :k]
        return _rounded((Q.T if turned else Q)[start:stop], self.dtype)


@dataclass(frozen=True)
class Masked:
    """W = original ∘ mask."""

    shape: tuple[int, ...]
    original: str
    mask: str
    dtype: str
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, in the stored type."""
        rows = checkpoint.read_rows(self.original, start, stop)
        return rows * checkpoint.read_rows(self.mask, start, stop).to(rows.dtype)


@dataclass(frozen=True)
class Ternary:
    """BitNet b1.58 on the way: round(W/s) within ±1, times s = mean |W| of the whole matrix (Ma et al. 2024)."""

    shape: tuple[int, ...]
    name: str
    dtype: str
    by_rows: bool = False

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32."""
        W = checkpoint.read(self.name).float()
        scale = W.abs().mean().clamp_min(1e-5)
        return (W[start:stop] / scale).round().clamp(-1, 1) * scale


@dataclass(frozen=True)
class Standardized:
    """Weight standardization (Qiao et al. 2019): each output's kernel with mean 0 and variance 1."""

    shape: tuple[int, ...]
    name: str
    dtype: str
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32; float64 where it is stored so."""
        import torch

        W = checkpoint.read_rows(self.name, start, stop).to(torch.float64)
        flat = W.flatten(1)
        var, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
        return _rounded(((flat - mean) / (var + 1e-6).sqrt()).reshape(W.shape), self.dtype)


def _rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    import torch

    return values if dtype == "F64" else values.to(torch.float32)


_ASSEMBLED = (
    (("r_weight", "i_weight", "j_weight", "k_weight"), "a quaternion layer"),
    (("real_weight", "imag_weight"), "a complex layer"),
    (("centroids", "assignments"), "fairseq's product quantization"),
)


def _by_config(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Weights that the config says are changed on the way, though nothing is stored for it; and assembled ones."""
    for leaves, what in _ASSEMBLED:
        if all(leaf in group.leaves for leaf in leaves):
            why = f"parts of {what}, whose matrix is assembled of them; audit the live module, or its merged weights"
            yield Refused(group.pick(*leaves, "counts"), why)
    spec = group.leaves.get("weight")
    if spec is None or spec.dtype not in _FLOATS or len(spec.shape) not in (2, 4):
        return
    if len(spec.shape) == 4 and _is_standardized(checkpoint):
        yield Read(spec.name, (spec.name,), Standardized(spec.shape, spec.name, spec.dtype))
    elif len(spec.shape) == 2 and _is_ternary(group.module, checkpoint):
        yield Read(spec.name, (spec.name,), Ternary(spec.shape, spec.name, spec.dtype))
    elif len(spec.shape) == 2 and _is_conditional(group.module, checkpoint):
        why = "kernels of conditional convolutions, a row for each expert, whose shape is stored nowhere"
        yield Refused((spec.name,), f"{why}; audit the live module")


def _is_standardized(checkpoint: Checkpoint) -> bool:
    architecture = str(checkpoint.config.get("architecture", ""))
    return checkpoint.config.get("model_type") == "bit" or (
        architecture.startswith("resnetv2") and "bit" in architecture
    )


def _is_ternary(module: str, checkpoint: Checkpoint) -> bool:
    settings = checkpoint.config.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("linear_class") != "autobitlinear":
        return False
    named = settings.get("modules_to_not_convert") or ()
    if not isinstance(named, list | tuple):
        fix = "correct quantization_config in config.json"
        raise UnreadableError("modules_to_not_convert is no list of names", where=checkpoint.uri, fix=fix)
    left_out = (*named, "lm_head", "embed_tokens")
    return settings.get("quantization_mode") == "online" and not any(str(name) in module for name in left_out)


def _is_conditional(module: str, checkpoint: Checkpoint) -> bool:
    block, _, own = module.rpartition(".")
    return own.startswith("conv") and f"{block}.routing_fn.weight" in checkpoint.tensors


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Weights of a module that are computed, from others or by what the config says."""
    yield from _by_config(group, checkpoint)
    if any(leaf.endswith(_BY_OTHERS) or "parametrizations." in leaf for leaf in group.leaves):
        yield from _of_others(group)


#: Ends of names beside which a weight is computed.
_BY_OTHERS = ("_g", "_orig", "_integer")


def _of_others(group: Siblings) -> Iterator[Claim]:
    leaves = group.leaves
    if "weight_integer" in leaves and leaves.keys() & {"weight_scaling_factor", "fc_scaling_factor"}:
        yield from (Read(name, (name,)) for name in group.pick("weight"))
        yield Aside(
            group.pick("weight_integer", "weight_scaling_factor", "fc_scaling_factor", "act_scaling_factor"),
            "what I-BERT makes of the weight anew at each step",
        )
        return
    for leaf, spec in leaves.items():
        if "weight" not in leaf:
            continue
        stem = leaf.removesuffix("_g")
        if stem != leaf and (v := leaves.get(f"{stem}_v")) is not None and f"{stem}_orig" not in leaves:
            yield _weight_norm(group.named(stem), spec, v)
        stem = leaf.removesuffix("_orig")
        if stem != leaf:
            yield from _of_original(group, stem, spec)
        outer, mark, inner = leaf.partition(".original")
        if mark and inner in ("0", "") and outer.startswith("parametrizations."):
            yield _parametrized(group, outer, inner, spec)


def _weight_norm(name: str, g: TensorSpec, v: TensorSpec, extra: tuple[str, ...] = ()) -> Claim:
    single = prod(g.shape) == 1 and len(g.shape) < 2
    fits = len(g.shape) == len(v.shape) and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    if not (single or fits) or v.dtype not in _FLOATS:
        why = f"a weight norm of shapes {g.shape} and {v.shape}, which do not fit together"
        return Refused((v.name, g.name, *extra), f"{why}: remove_weight_norm before saving")
    axes = tuple(range(len(v.shape))) if single else tuple(i for i, size in enumerate(g.shape) if size == 1)
    return Read(name, (v.name, g.name, *extra), WeightNorm(v.shape, g.name, v.name, axes, v.dtype))


def _of_original(group: Siblings, stem: str, spec: TensorSpec) -> Iterator[Claim]:
    leaves = group.leaves
    mask, u, v = (leaves.get(f"{stem}_{end}") for end in ("mask", "u", "v"))
    if mask is not None and mask.shape == spec.shape and u is None:
        yield Read(group.named(stem), (spec.name, mask.name), Masked(spec.shape, spec.name, mask.name, spec.dtype))
    elif u is not None and len(spec.shape) > 1 and spec.dtype in _FLOATS:
        yield _spectral(group.named(stem), spec, u, v)
    elif len(spec.shape) > 1:
        others = (f"{stem}_{end}" for end in ("mask", "u", "v"))
        yield Refused((spec.name, *group.pick(*others)), _UNKNOWN)


def _spectral(name: str, spec: TensorSpec, u: TensorSpec, v: TensorSpec | None) -> Claim:
    axes = [
        axis
        for axis, size in enumerate(spec.shape[:2])
        if prod(u.shape) == size and v is not None and prod(v.shape) * size == spec.numel
    ]
    members = (spec.name, u.name, *(() if v is None else (v.name,)))
    if not axes or v is None:
        return Refused(members, "a spectral norm without the two vectors that its scale is computed with")
    open_ = len(axes) > 1 and len(spec.shape) > 2
    note = "the scale is that of a convolution; of a transposed one it would be another" if open_ else ""
    return Read(name, members, SpectralNorm(spec.shape, spec.name, u.name, v.name, axes[0], spec.dtype), note)


_UNKNOWN = (
    "what a function that is not stored makes the weight of: save the model after "
    "torch.nn.utils.parametrize.remove_parametrizations, or audit the live module"
)


def _parametrized(group: Siblings, outer: str, inner: str, spec: TensorSpec) -> Claim:
    """`outer` is `parametrizations.weight`; the weight is `original` or computed from `original0`, `original1`."""
    leaves, name = group.leaves, group.named(outer.removeprefix("parametrizations."))
    own = [leaf for leaf in leaves if leaf.startswith(f"{outer}.")]
    members = group.pick(*own)
    extra = [leaf for leaf in own if ".original" not in leaf]
    v, u, base = (leaves.get(f"{outer}.{end}") for end in ("original1", "0._u", "0.base"))
    if inner == "0" and v is not None and not extra and len(own) == 2 and _is_norm_of(spec, v):
        return _weight_norm(name, spec, v)
    if inner == "" and u is not None and len(own) == 3 and len(spec.shape) > 1:
        return _spectral(name, spec, u, leaves.get(f"{outer}.0._v"))
    if inner == "" and base is not None and len(own) == 2 and len(spec.shape) == 2:
        # Checked before anything is done: exp(A) takes the cube of the longer side, and the base is as large as A.
        if base.shape != (max(spec.shape), max(spec.shape)):
            return Refused(members, f"its base is {list(base.shape)}, and a square of its longer side was expected")
        return Read(name, members, Orthogonal(spec.shape, spec.name, base.name, spec.dtype))
    return Refused(members, _UNKNOWN)


def _is_norm_of(g: TensorSpec, v: TensorSpec) -> bool:
    """Of two originals the first is the norm, which has fewer entries."""
    return prod(g.shape) < prod(v.shape) or prod(v.shape) == 1
