"""LoRA adapters of peft: the update alone, or added to its base model, computed row block by row block.

    ΔW = s · B · A,   A (r × in), B (out × r),   s = alpha / r,  or alpha / √r with `use_rslora`
    DoRA: W' = m ∘ (W + ΔW) / ‖W + ΔW‖ with the norm of each output's weights (Liu et al. 2024)

Everything is computed in float64 from the stored factors; `merge_and_unload` of peft additionally rounds the
result to the base's dtype. Names are those of the base model, without `base_model.model.`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tailwise.checkpoints.by_address import Address, ByAddress, from_anywhere
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.formats.lora_names import Update, read_names
from tailwise.checkpoints.readings.claimed import claimed
from tailwise.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    import torch


class PeftCheckpoint(Checkpoint):
    """An adapter as a checkpoint: `delta` holds the updated modules' ΔW, `merged` the whole merged model."""

    format = "peft"

    @classmethod
    def open(
        cls, adapter: Checkpoint, adapter_config: Mapping[str, Any], base: Checkpoint | None, mode: str
    ) -> PeftCheckpoint:
        """`adapter_config` is adapter_config.json; `mode` is `delta` or `merged` (which needs `base`)."""
        if mode not in ("delta", "merged"):
            raise UsageError(f"there is no adapter mode {mode!r}", fix="choose delta or merged")
        kind = str(adapter_config.get("peft_type", "LORA"))
        if kind != "LORA":
            raise UsageError(
                f"the adapter is of type {kind}; only LORA is read",
                where=adapter.uri,
                fix="merge it with peft (merge_and_unload) and audit the saved model",
            )
        if mode == "merged" and base is None:
            name = adapter_config.get("base_model_name_or_path") or "the base model"
            raise UsageError(
                "merging an adapter needs its base model",
                where=adapter.uri,
                fix=f"give the base as well (base={name!r}), or audit the update alone (mode='delta')",
            )
        return cls(adapter, adapter_config, None if base is None else claimed(base), merged=mode == "merged")

    def __init__(
        self, adapter: Checkpoint, settings: Mapping[str, Any], base: Checkpoint | None, *, merged: bool
    ) -> None:
        self._adapter, self._base, self._merged = adapter, base, merged
        self._updates, self._saved = read_names(adapter, settings)
        if not self._updates:
            raise UnreadableError(
                "holds no LoRA factors", where=adapter.uri, fix="check that this is an adapter saved by peft"
            )
        self.uri, self.revision, self.metadata = adapter.uri, adapter.revision, adapter.metadata
        self.config = base.config if base is not None else adapter.config
        self.local = adapter.local
        if base is not None:
            self.module_kinds, self.read_whole = base.module_kinds, base.read_whole
            self.local = adapter.local and base.local
        self._by_tensor = {self._target(update): self._oriented(update) for update in self._updates}
        self._saved = {n: source for n, source in self._saved.items() if n not in self._by_tensor}
        self.tensors = self._merged_specs() if merged else self._delta_specs()
        own = dict.fromkeys(self._by_tensor, "lora-merged" if merged else "lora")
        under = base if merged and base is not None else None
        self.readings = {**(under.readings if under else {}), **own}
        first = under.shared if under else {}
        # A tied tensor that is updated under one of its names is no longer the same tensor.
        self.shared = {a: b for a, b in first.items() if a not in self._by_tensor and b not in self._by_tensor}

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(s·B, A) of ΔW = s·B·A in float64, in the base's layout; None where it is not of that form."""
        import torch

        update = self._by_tensor.get(name)
        if update is None or self._merged or update.magnitude is not None:
            return None
        down = self._adapter.read(update.down).to(torch.float64)
        up = self._adapter.read(update.up).to(torch.float64)
        if down.ndim > 2:  # convolutions: A (r, in, k…), B (out, r, 1…)
            down, up = down.flatten(1), up.flatten(1)
        return (update.scale * down.T, up.T) if update.flip else (update.scale * up, down)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See `Checkpoint`: updated tensors are float64, others as stored."""
        import torch

        if (update := self._by_tensor.get(name)) is not None:
            base = None
            if self._base is not None and (self._merged or update.magnitude is not None):
                base = self._base.read_rows(name, start, stop).to(torch.float64)
            return self._updated(update, base, start, stop)
        if name in self._saved:
            new = self._adapter.read_rows(self._saved[name], start, stop)
            if self._merged:
                return new
            return new.to(torch.float64) - self._given_base.read_rows(name, start, stop).to(torch.float64)
        return self._given_base.read_rows(name, start, stop)

    @property
    def _given_base(self) -> Checkpoint:
        if self._base is None:
            raise AssertionError("without a base only updates are listed, and none that needs the base")
        return self._base

    def identity(self, name: str) -> str | None:
        """See `Checkpoint`: the identities of the factors and the base's tensor, and the scale."""
        update = self._by_tensor.get(name)
        own = update.tensors if update else (self._saved[name],) if name in self._saved else ()
        found = [self._adapter.identity(tensor) for tensor in own]
        if self._base is not None and name in self._base.tensors:
            found.append(self._base.identity(name))
        if None in found:
            return None
        if not own:
            return found[0]
        how = (self._merged, update.scale, update.flip) if update else ()
        return "+".join([f"lora {how}", *map(str, found)])

    def part(self, names: Iterable[str]) -> ByAddress:
        """See `Checkpoint`."""
        base = None if self._base is None else from_anywhere(self._base.uri)
        mode: Literal["delta", "merged"] = "merged" if self._merged else "delta"
        return ByAddress(self, names, Address(from_anywhere(self.uri), base, mode))

    def close(self) -> None:
        """See `Checkpoint`."""
        self._adapter.close()
        if self._base is not None:
            self._base.close()

    def _updated(self, update: Update, base: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
        """Rows of ΔW, or of the base plus ΔW, shape as the base's rows."""
        import torch

        down = self._adapter.read(update.down).to(torch.float64)
        up = self._adapter.read(update.up)
        if update.flip:
            delta = update.scale * (down.T[start:stop] @ up.to(torch.float64).T)
        else:
            delta = update.scale * (up[start:stop].to(torch.float64).flatten(1) @ down.flatten(1))
        shape = self.tensors[self._target(update)].shape
        delta = delta.reshape(stop - start, *shape[1:])
        if base is None:
            return delta
        if update.magnitude is None:
            return base + delta
        merged = self._rescaled(update, base + delta, start, stop)
        return merged if self._merged else merged - base

    def _rescaled(self, update: Update, summed: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """DoRA: every output's weights brought to the learned norm."""
        import torch

        magnitude = self._adapter.read(str(update.magnitude)).to(torch.float64).reshape(-1)
        if update.flip:
            return summed * (magnitude / self._column_norms(update))
        ratio: torch.Tensor = magnitude[start:stop] / torch.linalg.vector_norm(summed.flatten(1), dim=1)
        return summed * ratio.reshape(-1, *[1] * (summed.ndim - 1))

    def _column_norms(self, update: Update) -> torch.Tensor:
        """Norms over all rows of W + ΔW, where an output is a column of what is stored."""
        import torch

        name = self._target(update)
        plain = replace(update, magnitude=None)
        whole = self._given_base.read(name).to(torch.float64)
        norms: torch.Tensor = torch.linalg.vector_norm(self._updated(plain, whole, 0, whole.shape[0]), dim=0)
        return norms

    def _target(self, update: Update) -> str:
        """Name of the updated tensor: the module's weight, or the base's bare parameter."""
        if self._base is not None and f"{update.module}.weight" not in self._base.tensors:
            if update.module in self._base.tensors:
                return update.module
            inside = any(name.startswith(f"{update.module}.") for name in self._base.tensors)
            raise UsageError(
                f"the adapter updates {update.module}, which the base has not as a matrix",
                where=self._adapter.uri,
                fix="merge it with peft (merge_and_unload) and audit the saved model"
                if inside  # `target_parameters`: one pair of factors for a stack of experts
                else "give the base model that the adapter was trained on",
            )
        return f"{update.module}.weight"

    def _oriented(self, update: Update) -> Update:
        """The update with `flip` corrected where the base's shape allows one orientation only."""
        if self._base is None:
            return update
        down, up = self._adapter.tensors[update.down].shape, self._adapter.tensors[update.up].shape
        stored = self._base.tensors[self._target(update)].shape
        straight, flipped = (up[0], *down[1:]), (down[1], up[0])
        if stored not in (straight, flipped):
            raise UsageError(
                f"{update.module} is {stored} in the base, and the adapter's update is {straight}",
                where=self._adapter.uri,
                fix="give the base model that the adapter was trained on",
            )
        return update if straight == flipped else replace(update, flip=stored == flipped)

    def _merged_specs(self) -> Mapping[str, TensorSpec]:
        specs = dict(self._given_base.tensors)
        for name, source in self._saved.items():
            spec = self._adapter.tensors[source]
            specs[name] = TensorSpec(name, spec.dtype, spec.shape, spec.nbytes)
        for name, update in self._by_tensor.items():
            spec = specs[name]
            extra = sum(self._adapter.tensors[tensor].nbytes for tensor in update.tensors)
            specs[name] = TensorSpec(name, spec.dtype, spec.shape, spec.nbytes + extra)
        return specs

    def _delta_specs(self) -> Mapping[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        for name, update in self._by_tensor.items():
            if update.magnitude is not None and self._base is None:
                raise UsageError(
                    f"{update.module} is a DoRA update, which depends on the base's weights",
                    where=self._adapter.uri,
                    fix="give the base model as well",
                )
            down, up = self._adapter.tensors[update.down], self._adapter.tensors[update.up]
            shape = (down.shape[1], up.shape[0]) if update.flip else (up.shape[0], *down.shape[1:])
            nbytes = sum(self._adapter.tensors[tensor].nbytes for tensor in update.tensors)
            specs[name] = TensorSpec(name, down.dtype, shape, nbytes)
        for name, source in self._saved.items():
            if self._base is not None and name in self._base.tensors:
                spec = self._adapter.tensors[source]
                if spec.shape != self._base.tensors[name].shape:
                    raise UsageError(
                        f"{name} is {spec.shape}, and in the base {self._base.tensors[name].shape}",
                        where=self._adapter.uri,
                        fix="resize the base's embeddings as in training, or audit with mode='merged'",
                    )
                specs[name] = TensorSpec(name, spec.dtype, spec.shape, spec.nbytes)
        return specs
