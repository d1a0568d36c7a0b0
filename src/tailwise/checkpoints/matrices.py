"""Tensors to weight matrices: which tensors make which matrices, and how each is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.fused import Part
from tailwise.checkpoints.parts import EMBEDDINGS, Hints, is_numeric, parts_of
from tailwise.checkpoints.readings.claim import Codec
from tailwise.checkpoints.readings.partition import VERSIONS, ClaimedCheckpoint, claimed, made_by
from tailwise.checkpoints.roles import NO_BLOCK, classify
from tailwise.checkpoints.views import TensorView, ViewMatrix, WeightMatrix, reads_by_rows
from tailwise.core.uncollected import without_collections

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

__all__ = ["MatrixSource", "TensorView", "Unmeasured", "WeightMatrix", "group", "load"]


@dataclass(frozen=True)
class MatrixSource:
    """One matrix (or, for pooled convolutions, several of one shape) and the tensors it is made of.

    This is the unit of work: small, picklable, and its cost is known before anything is read.
    """

    name: str  # the module's full name; parts of a fused tensor as `name#part`, experts as `name[e]`
    rows: int
    cols: int
    role: str  # a key of roles.ROLES
    block: int | None  # index of the block it sits in, counted from the data
    kind: str  # dense, embedding, conv, rnn, expert, lora
    dtype: str  # as stored
    nbytes: int  # to read from disk
    views: tuple[TensorView, ...]  # one; or one per slice of a pooled convolution
    reading: str = "plain"  # how the tensors were taken: plain, kernel, fused, stack, a packing, …
    version: int = 1  # of the reading
    input_axis: int = 1  # 1 where the columns are the inputs (out × in), 0 where the rows are
    reads: tuple[str, ...] = ()  # stored tensors that are read, where those are not the views' own
    codec: Codec | None = None  # what makes the views' tensor of them
    note: str = ""  # what could not be told apart, and why

    @property
    def tensors(self) -> tuple[str, ...]:
        """The stored tensors the matrix depends on: when none of them changes, neither does the matrix."""
        return self.reads or tuple(dict.fromkeys(view.tensor for view in self.views))

    @property
    def n(self) -> int:
        """The long side."""
        return max(self.rows, self.cols)

    @property
    def m(self) -> int:
        """The short side: the number of eigenvalues of one slice."""
        return min(self.rows, self.cols)

    @property
    def n_params(self) -> int:
        """Entries of all slices."""
        return self.rows * self.cols * len(self.views)

    @property
    def by_factors(self) -> bool:
        """Whether it is a product that is never made: the change of an adapter, of low rank, without a magnitude."""
        return self.kind == "lora" and not any("magnitude" in name or "dora" in name for name in self.tensors)

    @property
    def flops(self) -> float:
        """Approximate work of one spectrum: half a Gram product and a tridiagonal reduction."""
        return len(self.views) * (float(self.n) * self.m**2 + 4 / 3 * float(self.m) ** 3)


@dataclass(frozen=True)
class Unmeasured:
    """A tensor (or matrix) that is listed but not measured, and why."""

    name: str
    status: str  # NOT_A_MATRIX, TOO_SMALL, SHARED, UNSUPPORTED, UNREADABLE
    reason: str  # one sentence, with what to do where something can be done
    role: str
    block: int | None
    dtype: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...] = ()  # the stored ones, where the name is not one of them


def group(checkpoint: Checkpoint, *, conv: str, min_evals: int) -> tuple[list[MatrixSource], list[Unmeasured]]:
    """Every matrix of the checkpoint, and everything that is not one, in the checkpoint's order.

    Together they name every tensor. `conv` is a `Recipe.conv`; matrices with fewer than `min_evals`
    eigenvalues are listed as TOO_SMALL. Of a weight that is made of several tensors, the main one stands for the matrix
    and its scales, zeros and indices are listed as part of it.
    """
    with without_collections():
        plan = _Grouping(claimed(checkpoint), conv, min_evals)
        for name in plan.checkpoint.stored:
            plan.take(name)
        return plan.found, plan.rest


def load(source: MatrixSource, checkpoint: Checkpoint) -> list[WeightMatrix]:
    """The matrices of `source`: one, or one per slice of a pooled convolution. Reads nothing yet."""
    if source.codec is not None and source.reads[0] in checkpoint.tensors:
        checkpoint = made_by(checkpoint, source.views[0].tensor, source.reads, source.codec)
    return [ViewMatrix(view, checkpoint) for view in source.views]


class _Grouping:
    """One pass over a checkpoint's tensors."""

    def __init__(self, checkpoint: ClaimedCheckpoint, conv: str, min_evals: int) -> None:
        self.checkpoint, self.min_evals = checkpoint, min_evals
        self.found: list[MatrixSource] = []
        self.rest: list[Unmeasured] = []
        self._made: dict[str, list[str]] = {}  # stored tensor → the weights that are made of it
        for name, members in checkpoint.members.items():
            for member in members:
                self._made.setdefault(member, []).append(name)
        self._hints = Hints(_config(checkpoint), checkpoint.tensors, checkpoint.module_kinds, conv, min_evals)
        self._roles = {n: self._role(n, spec) for n, spec in checkpoint.tensors.items()}
        self._blocks = number_blocks(n for n, role in self._roles.items() if role not in NO_BLOCK)
        self._first = self._representatives(_shared(checkpoint))
        self._used: set[str] = set()

    def _representatives(self, first: Mapping[str, str]) -> dict[str, str]:
        """Of tensors that are one, the one that is measured: a table before a head, whatever the file's order."""
        groups: dict[str, list[str]] = {}
        for name, other in first.items():
            groups.setdefault(_root(other, first), []).append(name)
        representatives: dict[str, str] = {}
        for root, names in groups.items():
            chosen = min((root, *names), key=lambda name: self._roles.get(name) not in EMBEDDINGS)
            representatives.update({name: chosen for name in (root, *names) if name != chosen})
        return representatives

    def take(self, stored: str) -> None:
        """Account for one stored tensor."""
        heads = [name for name in self._made.get(stored, ()) if self.checkpoint.members[name][0] == stored]
        for name in heads:
            self._weight(name)
        if heads:
            return
        if stored in self._made:
            spec = self.checkpoint.stored[stored]
            owner = self._made[stored][0]
            how = self.checkpoint.readings[owner]
            self._list(spec, "NOT_A_MATRIX", f"part of {owner}, which is read by {how}", owner)
        else:
            self._weight(stored)

    def _weight(self, name: str) -> None:
        spec = self.checkpoint.tensors[name]
        if refusal := self._refusal(name, spec):
            self._list(spec, *refusal, name)
            return
        if 0 in spec.shape:  # the other axes may be of any length, and cost the file nothing
            self._list(spec, "TOO_SMALL", self._too_small(0), name)
            return
        parts = parts_of(spec, self._roles[name], self._hints)
        measured = [part for part in parts if _short_side(part) >= self.min_evals]
        if not measured:
            self._list(spec, "TOO_SMALL", self._too_small(_short_side(parts[0])), name)
            return
        module = self._unique(name)
        for part in parts:
            self._add(module, part, spec)

    def _role(self, name: str, spec: TensorSpec) -> str:
        role = classify(name, len(spec.shape), self._hints.config).role
        kind = self._hints.kind_of(name)
        return "embed" if role == "other" and kind == "Embedding" else role

    def _refusal(self, name: str, spec: TensorSpec) -> tuple[str, str] | None:
        """Status and reason of a tensor that no matrix is made of."""
        if name in self.checkpoint.unsupported:
            return "UNSUPPORTED", self.checkpoint.unsupported[name]
        if name in self._first:
            return "SHARED", f"the same tensor as {self._first[name]}, which is measured"
        why = self.checkpoint.aside.get(name) or self._no_matrix(name, spec)
        return None if why is None else ("NOT_A_MATRIX", why)

    def _no_matrix(self, name: str, spec: TensorSpec) -> str | None:
        role = self._roles[name]
        if role in ("bias", "norm", "ssm_state"):
            return f"a {role} acts entry by entry: it has no spectrum"
        if len(spec.shape) < 2:
            return f"it has {len(spec.shape)} axes; a matrix needs two"
        bias = self.checkpoint.tensors.get(f"{name.removesuffix('.weight')}.bias")
        if bias is not None and bias.shape == spec.shape:
            return "its bias has its shape, so it acts entry by entry, as the gain of a norm does"
        if not is_numeric(spec.dtype) and name not in self.checkpoint.readings:
            return f"{spec.dtype} entries are indices, masks or codes without a known packing"
        return None

    def _add(self, module: str, part: Part, spec: TensorSpec) -> None:
        view, block, name = part.views[0], self._blocks.get(spec.name), f"{module}{part.suffix}"
        if (m := _short_side(part)) < self.min_evals:
            shape = (view.n_rows, view.n_cols)
            self.rest.append(Unmeasured(name, "TOO_SMALL", self._too_small(m), part.role, block, spec.dtype, shape))
            return
        kind = "embedding" if part.kind == "dense" and part.role in EMBEDDINGS else part.kind
        claim, codec = self.checkpoint.readings.get(spec.name, "plain"), self.checkpoint.codec_of(spec.name)
        own = (claim if claim != "plain" else "", part.reading if part.reading != "plain" else "")
        self.found.append(
            MatrixSource(
                name=name,
                rows=view.n_rows,
                cols=view.n_cols,
                role=part.role,
                block=block,
                kind="lora" if claim == "lora" else kind,
                dtype=spec.dtype,
                nbytes=self._bytes_to_read(part.views, spec),
                views=part.views,
                reading="+".join(filter(None, own)) or "plain",
                version=VERSIONS.get(claim, 1),
                input_axis=0 if getattr(codec, "flip", False) else part.input_axis,
                reads=self.checkpoint.members.get(spec.name, ()),
                codec=codec,
                note="; ".join(filter(None, (self.checkpoint.assumed.get(spec.name, ""), part.note))),
            )
        )

    def _list(self, spec: TensorSpec, status: str, reason: str, name: str) -> None:
        """List a tensor that is not measured; its role and block are those of the weight `name`."""
        role, block = self._roles[name], self._blocks.get(name)
        members = self.checkpoint.members.get(spec.name, ())
        self.rest.append(Unmeasured(spec.name, status, reason, role, block, spec.dtype, spec.shape, members))

    def _too_small(self, m: int) -> str:
        return f"its short side is {m}, below min_evals = {self.min_evals}; lower min_evals to measure it"

    def _unique(self, name: str) -> str:
        module = name if self.checkpoint.factors_apart else _WRAPPED.sub("", name)
        module = module.replace(".weight#", "#") if "#lora" in module else module.removesuffix(".weight")
        if module in self._used or (module != name and module in self.checkpoint.tensors):
            module = name
        self._used.add(module)
        return module

    def _bytes_to_read(self, views: tuple[TensorView, ...], spec: TensorSpec) -> int:
        if not reads_by_rows(views[0], self.checkpoint) or not spec.numel:
            return spec.nbytes
        return views[0].n_rows * views[0].shape[1] * spec.nbytes // spec.numel


#: What peft puts around the names of the model that it adapts.
_WRAPPED = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.modules_to_save\.default(?=\.)")


def _root(name: str, first: Mapping[str, str]) -> str:
    seen = {name}
    while (following := first.get(name)) is not None and following not in seen:
        seen.add(following)
        name = following
    return name


def _short_side(part: Part) -> int:
    return min(part.views[0].n_rows, part.views[0].n_cols)


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The model's config; of a GGUF file without one, its own metadata with the counts as numbers."""
    if checkpoint.config or "general.architecture" not in checkpoint.metadata:
        return checkpoint.config
    return {k: int(v) if isinstance(v, str) and v.isdecimal() else v for k, v in checkpoint.metadata.items()}


def _shared(checkpoint: ClaimedCheckpoint) -> dict[str, str]:
    """Tensor → the one it shares its storage with, by what the format says or by equal identities."""
    first = {name: other for name, other in checkpoint.shared.items() if name != other and other in checkpoint.tensors}
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for name, spec in checkpoint.tensors.items():
        # What is made of several tensors can only be the same where the first of them is.
        if len(spec.shape) > 1 and name not in first and (head := checkpoint.identity_of_first(name)) is not None:
            alike.setdefault((head, spec.dtype, spec.shape), []).append(name)
    for names in alike.values():
        seen: dict[str, str] = {}
        for name in names if len(names) > 1 else ():
            identity = checkpoint.identity(name)
            if identity is not None and (other := seen.setdefault(identity, name)) != name:
                first[name] = other
    return first
