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

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.formats import lora_names as lora_experts
from tailwise.checkpoints.formats.lora_names import Update, read_names, token_indices
from tailwise.checkpoints.formats.repeated import check_product
from tailwise.checkpoints.readings.partition import claimed
from tailwise.core.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    import torch


class PeftCheckpoint(Checkpoint):
    """An adapter as a checkpoint: `delta` holds the updated modules' ΔW, `merged` the whole merged model."""

    format = "peft"
    assumed: dict[str, str]
    aside: dict[str, str]
    unsupported: dict[str, str]

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
        self.reopen = adapter.reopen
        self.adapter_mode = "merged" if merged else "delta"
        self.base_uri = None if base is None else base.uri
        contents = read_names(adapter, settings)
        if not contents.updates:
            raise UnreadableError(
                "holds no LoRA factors", where=adapter.uri, fix="check that this is an adapter saved by peft"
            )
        self.uri, self.revision, self.metadata = adapter.uri, adapter.revision, adapter.metadata
        self.config = base.config if base is not None else adapter.config
        self.local = adapter.local
        if base is not None:
            self.module_kinds, self.read_whole = base.module_kinds, base.read_whole
            self.local = adapter.local and base.local
        self._saved = contents.saved
        self.assumed = {}
        self._by_tensor = self._placed(contents.updates)
        self._own: dict[str, str] = {}  # what is listed or measured as the adapter has it → the adapter's name
        self.aside, self.unsupported = {}, {}
        self._tokens = self._token_rows(contents.tokens, settings)
        self.tensors = self._merged_specs() if merged else self._delta_specs(contents.biases)
        own = dict.fromkeys(self._by_tensor, "lora-merged" if merged else "lora")
        own.update(dict.fromkeys(self._tokens, "trainable-tokens"))
        if merged and base is not None:
            self.notes = (*base.notes, f"an adapter, merged into {base.uri}")
        under = base if merged and base is not None else None
        self.readings = {**(under.readings if under else {}), **own}
        if under is not None:
            self._take_over(under)

    def _take_over(self, base: Checkpoint) -> None:
        """What is known of the base's tensors that stay as they are."""
        changed = {*self._by_tensor, *self._saved}
        # A tied tensor that is updated under one of its names is no longer the same tensor.
        self.shared = {a: b for a, b in base.shared.items() if a not in changed and b not in changed}
        self.unsupported = {n: why for n, why in base.unsupported.items() if n not in changed}
        self.aside = {n: why for n, why in base.aside.items() if n not in changed}
        self.assumed = {**{n: note for n, note in base.assumed.items() if n not in changed}, **self.assumed}

    def _placed(self, updates: list[Update]) -> dict[str, Update]:
        """Tensor that is changed → its update."""
        if self._base is not None:
            placed = lora_experts.in_base(updates, self._adapter, self._base)
            return {self._target(update): self._oriented(update) for update in placed}
        by_target: dict[str, Update] = {}
        for update, note in lora_experts.alone(updates, self._adapter):
            by_target[self._target(update)] = update
            if note:
                self.assumed[self._target(update)] = note
        return by_target

    def _token_rows(self, tokens: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
        """Table → the adapter's rows for it, and which they are; tables tied to it in the base with it."""
        tables: dict[str, tuple[str, list[int]]] = {}
        for name, source in tokens.items():
            rows, why = token_indices(name, settings), ""
            shape = self._adapter.tensors[source].shape
            if rows is None or len(rows) != shape[0] or not rows:
                why = "adapter_config.json does not say which rows they replace"
            elif name in self._by_tensor:
                why = "the table has low-rank factors too"
            elif self._base is None:
                why = "give the base to see their change"
            elif (
                (table := self._before_spec(name)) is None
                or table.shape[1:] != shape[1:]
                or table.shape[0] <= max(rows)
            ):
                why = "the base has no table that they fit into"
            elif not self._merged and table.shape != self._given_base.tensors.get(name, table).shape:
                why = "the table was resized: audit the adapter merged"
            elif name not in self._given_base.tensors:
                why = "the base has no table of this name"
            if not why and rows is not None:
                tables[name] = source, rows
                continue
            if self._merged:
                raise UsageError(
                    f"the adapter replaces rows of {name}: {why}",
                    where=self._adapter.uri,
                    fix="merge it with peft (merge_and_unload) and audit the saved model",
                )
            self._own[source] = source
            self.unsupported[source] = f"{shape[0]} rows that replace rows of {name}: {why}"
        if self._base is not None and self._merged:
            for a, b in self._base.shared.items():
                tables.update({a: tables[b]} if b in tables else {b: tables[a]} if a in tables else {})
        return tables

    def _before(self, name: str) -> tuple[Checkpoint, str]:
        """Where a weight lies as it is before the update: the adapter may carry its own, as after a resize."""
        return (self._adapter, self._saved[name]) if name in self._saved else (self._given_base, name)

    def _before_spec(self, name: str) -> TensorSpec | None:
        if name in self._saved:
            return self._adapter.tensors[self._saved[name]]
        return None if self._base is None else self._base.tensors.get(name)

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(s·B, A) of ΔW = s·B·A in float64, in the base's layout; None where it is not of that form."""
        import torch

        update = self._by_tensor.get(name)
        if update is None or self._merged or update.magnitude is not None:
            return None
        if update.experts and update.expert is None:
            return None  # of a stack
        down = self._adapter.read(update.down).to(torch.float64)
        up = self._adapter.read(update.up).to(torch.float64)
        if update.expert is not None:
            ups, downs = lora_experts.factors_of(update, down, up, update.expert, update.expert + 1)
            return update.scale * ups[0], downs[0]
        if down.ndim > 2:  # convolutions: A (r, in, k…), B (out, r, 1…)
            down, up = down.flatten(1), up.flatten(1)
        return (update.scale * down.T, up.T) if update.flip else (update.scale * up, down)

    @override
    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Updated tensors are float64, others as stored."""
        import torch

        if (update := self._by_tensor.get(name)) is not None:
            base = None
            if self._base is None:
                held = sum(self._adapter.tensors[tensor].numel for tensor in update.tensors)
                check_product(self.tensors[name].shape, held, f"{self.uri}, {name}")
            elif self._merged or update.magnitude is not None:
                base = self._rows_before(name, start, stop)
            return self._updated(update, base, start, stop)
        if name in self._own:
            return self._adapter.read_rows(self._own[name], start, stop)
        if name in self._tokens:
            return self._with_tokens(name, start, stop)
        if name in self._saved:
            new = self._adapter.read_rows(self._saved[name], start, stop)
            if self._merged:
                return new
            return new.to(torch.float64) - self._given_base.read_rows(name, start, stop).to(torch.float64)
        return self._given_base.read_rows(name, start, stop)

    def _rows_before(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        store, tensor = self._before(name)
        return store.read_rows(tensor, start, stop).to(torch.float64)

    def _with_tokens(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of a table with those put in that the adapter replaces, or of the change."""
        import torch

        source, rows = self._tokens[name]
        before = self._rows_before(name, start, stop)
        new = self._adapter.read(source).to(torch.float64)
        after = before.clone()
        for i, row in enumerate(rows):
            if start <= row < stop:
                after[row - start] = new[i]
        if self._merged:
            return after
        return after - self._given_base.read_rows(name, start, stop).to(torch.float64)

    @property
    def _given_base(self) -> Checkpoint:
        if self._base is None:
            raise AssertionError("without a base only updates are listed, and none that needs the base")
        return self._base

    @override
    def identity(self, name: str) -> str | None:
        """The identities of the factors and the base's tensor, and the scale."""
        update = self._by_tensor.get(name)
        own = self._sources(name)
        identities = [self._adapter.identity(tensor) for tensor in own]
        if self._base is not None and name in self._base.tensors:
            identities.append(self._base.identity(name))
        if None in identities:
            return None
        if not own:
            return identities[0]
        how: tuple[object, ...] = (self._merged, update.scale, update.flip) if update else (self._merged,)
        if update and update.experts:
            how += (update.rank, update.experts, update.expert)
        if name in self._tokens:
            how += (self._tokens[name][1],)
        return "+".join([f"lora {how}", *map(str, identities)])

    def _sources(self, name: str) -> tuple[str, ...]:
        """The adapter's tensors that a tensor is made of."""
        if name in self._own:
            return (self._own[name],)
        update = self._by_tensor.get(name)
        made = update.tensors if update else (self._tokens[name][0],) if name in self._tokens else ()
        saved = (self._saved[name],) if name in self._saved else ()
        return (*made, *saved)

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        base = None if self._base is None else from_anywhere(self._base.uri)
        mode: Literal["delta", "merged"] = "merged" if self._merged else "delta"
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), base, mode))

    @override
    def close(self) -> None:
        self._adapter.close()
        if self._base is not None:
            self._base.close()

    def _updated(self, update: Update, base: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
        """Rows of ΔW, or of the base plus ΔW, shape as the base's rows."""
        import torch

        down = self._adapter.read(update.down).to(torch.float64)
        up = self._adapter.read(update.up)
        if update.experts:
            return self._updated_experts(update, (down, up.to(torch.float64)), base, start, stop)
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

    def _updated_experts(
        self,
        update: Update,
        factors: tuple[torch.Tensor, torch.Tensor],
        base: torch.Tensor | None,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Rows of one expert's change, or the experts `start:stop` of a stack."""
        first, last = (start, stop) if update.expert is None else (update.expert, update.expert + 1)
        up, down = lora_experts.factors_of(update, *factors, first, last)
        if update.expert is not None:
            return update.scale * (up[0, start:stop] @ down[0])
        delta = update.scale * (up @ down)
        delta = delta.transpose(1, 2) if update.flip else delta
        return delta if base is None else base + delta

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
        store, tensor = self._before(name)
        whole = store.read(tensor).to(torch.float64)
        norms: torch.Tensor = torch.linalg.vector_norm(self._updated(plain, whole, 0, whole.shape[0]), dim=0)
        return norms

    def _target(self, update: Update) -> str:
        """Name of the updated tensor: the module's weight, or the base's bare parameter."""
        if update.tensor:
            return update.tensor
        if f"{update.module}.weight" in self._saved:
            return f"{update.module}.weight"
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
        if self._base is None or update.experts or (update.tensor and not update.flip):
            return update
        down, up = self._adapter.tensors[update.down].shape, self._adapter.tensors[update.up].shape
        spec = self._before_spec(self._target(update))
        stored = () if spec is None else spec.shape
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
        for name in (*self._by_tensor, *self._tokens):
            spec = specs[name]
            extra = sum(self._adapter.tensors[tensor].nbytes for tensor in self._sources(name))
            specs[name] = TensorSpec(name, spec.dtype, spec.shape, spec.nbytes + extra)
        return specs

    def _delta_specs(self, biases: list[str]) -> Mapping[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        for name, update in self._by_tensor.items():
            if update.magnitude is not None and self._base is None:
                raise UsageError(
                    f"{update.module} is a DoRA update, which depends on the base's weights",
                    where=self._adapter.uri,
                    fix="give the base model as well",
                )
            nbytes = sum(self._adapter.tensors[tensor].nbytes for tensor in update.tensors)
            specs[name] = TensorSpec(name, self._adapter.tensors[update.down].dtype, self._delta_shape(update), nbytes)
        for name, (source, _) in self._tokens.items():
            spec = self._adapter.tensors[source]
            specs[name] = TensorSpec(name, spec.dtype, self._given_base.tensors[name].shape, spec.nbytes)
        for name, source in self._saved.items():
            self._list_saved(name, source)
            if name not in specs and name not in self._own and source not in self._own:
                specs[name] = replace(self._adapter.tensors[source], name=name)
        for source in biases:
            self._own[source] = source
            self.aside[source] = "a bias of B: it changes the module's bias, not its matrix"
        for name, source in self._own.items():
            specs[name] = replace(self._adapter.tensors[source], name=name)
        return specs

    def _list_saved(self, name: str, source: str) -> None:
        """What to say of a whole tensor in the adapter, where its change is not simply new minus old."""
        spec = self._adapter.tensors[source]
        old = None if self._base is None else self._base.tensors.get(name)
        if name in self._by_tensor or name in self._tokens:
            self._own[source] = source
            self.aside[source] = f"the weight that the change of {name} is added to, as the adapter saved it"
        elif old is None:
            self._own[name] = source
            whose = "the base is not here" if self._base is None else "the base has none of this name"
            self.assumed[name] = f"the weight itself, which the adapter holds whole, and not its change: {whose}"
        elif old.shape != spec.shape:
            self._own[source] = source
            self.unsupported[source] = (
                f"replaces {name} of shape {list(old.shape)} with one of {list(spec.shape)}, which has no difference: "
                "audit the adapter merged, or without the base"
            )

    def _delta_shape(self, update: Update) -> tuple[int, ...]:
        down, up = self._adapter.tensors[update.down].shape, self._adapter.tensors[update.up].shape
        if update.expert is not None:
            return up[0], down[1]
        if update.experts:
            return self._given_base.tensors[update.tensor].shape
        return (down[1], up[0]) if update.flip else (up[0], *down[1:])
