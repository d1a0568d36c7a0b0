"""A model that is compressed, scored and made whole again, as often as a search asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.fusing import in_one_matrix, merged_by_servers
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import Treatment, TreatmentSettings
from tailwise.compression.treating.block_work import BlockWork, LayerJob, Nowhere, jobs_of
from tailwise.compression.treating.shared_scales import Reaches, joined_reaches, shared_reaches
from tailwise.compression.treating.treated import as_matrices, treated_layer, treated_tensor
from tailwise.compression.trying.material import Material, RowScores, Text, objective_of, products_in
from tailwise.compression.trying.prefix import Prefix
from tailwise.core.errors import UsageError
from tailwise.core.freed import give_back
from tailwise.models.activations import Activations, Need
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.calibrate import Inputs
from tailwise.models.walking.hosts import Host
from tailwise.models.walking.statistics import is_prunable
from tailwise.models.walking.walk import home_of, walk_blocks

#: Bytes of XᵀX of all layers together; above it trials take the nearest operator that needs less.
MOST_HESSIANS = 6 << 30
#: Bytes of changed tensors that are kept, so that they need not be made again.
MOST_MADE = 4 << 30


@dataclass
class Trial:
    """The model, and what each planned tensor is in it.

    In `losses` the inputs of the layers are measured once, where applying a plan measures each block anew behind the
    changed ones: it is cheap and close, and finds plans. `look_again` measures them behind another plan than none, and
    `applied_scores` judges plans. What is made small is the objective of the material.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]  # stored tensor → its place in the model
    places: Mapping[str, str]  # parameter → stored tensor
    config: Mapping[str, Any]
    dtypes: Mapping[str, torch.dtype]  # stored tensor → as it is stored
    how: TreatmentSettings
    material: Material = field(default_factory=Text)
    inputs: Mapping[str, Activations] = field(default_factory=dict)  # stored tensor → what its layer sees
    passes: torch.dtype | None = None  # what trials multiply in; None: as the weights are
    judged: TreatmentSettings | None = None  # how plans are judged, where trials take lighter operators
    together: Sequence[tuple[str, ...]] = ()  # stored tensors that servers hold as one
    runs: int = 0
    _dense: dict[str, torch.Tensor] = field(default_factory=dict)
    _now: dict[str, Treatment] = field(default_factory=dict)
    _base: dict[str, Treatment] = field(default_factory=dict)
    _made: dict[tuple[str, Treatment], torch.Tensor] = field(default_factory=dict)
    _reaches: dict[str, Reaches] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prefix = Prefix(self.model, lambda model, chosen: objective_of(self.material, model, chosen))
        self._block = {tensor: self._prefix.block_of(place) for place, tensor in self.places.items()}
        self._layers = {
            tensor: self.model.get_submodule(place.removesuffix(".weight"))
            for place, tensor in self.places.items()
            if place.endswith(".weight")
        }

    def losses(self, plan: Plan, windows: torch.Tensor) -> NDArray[np.float64]:
        """The objective of every window under a plan, (n,)."""
        self._set({item.tensor: item for item in plan})
        self.runs += 1
        with self.quick():
            return self._prefix.losses(windows, self._first_changed())

    def settle(self, plan: Plan, windows: torch.Tensor) -> NDArray[np.float64]:
        """As `losses`; plans that differ from this one in late blocks alone are scored faster from here on."""
        self._base, self._made = {}, self._made if self._few else {}
        self._set({item.tensor: item for item in plan})
        self._base = dict(self._now)
        if not self._few:
            self._made = {(name, key): self.parameters[name].detach().clone() for name, key in self._now.items()}
        with self.quick():
            return self._prefix.record(windows)

    def quick(self) -> AbstractContextManager[Any]:
        """Products in `passes` for a while."""
        return products_in(self.passes, self.model)

    def applied_losses(self, plan: Plan, calibration: torch.Tensor, windows: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss a token of every window, (n,), with the plan carried out as `apply` does."""
        return self.applied_scores(plan, calibration, windows).losses

    def applied_scores(self, plan: Plan, calibration: torch.Tensor, windows: torch.Tensor) -> RowScores:
        """What the model gives with the plan carried out as `apply` does, in the precision of the weights.

        The inputs of a block come from the changed ones; they alone are measured with `quick` products.
        """
        for tensor in self.parameters:
            self._dense_of(tensor)
        self.restore()
        self.runs += 1
        try:
            self.carry_out(plan, calibration)
            return self.material.scores(self.model, windows)
        finally:
            for item in plan:
                self._put(item.tensor, self._dense[item.tensor])

    def look_again(self, plan: Plan, windows: torch.Tensor) -> None:
        """Measure the inputs of the layers behind the model under a plan; from here on trials see those."""
        if not self.how.looks:
            return
        self._set({item.tensor: item for item in plan})
        with self.quick():
            self.inputs = seen_by(self.model, self.places, self.how.needs, self.material.inputs(windows))
        self.restore()
        self._made = {}

    def gradients(
        self, plan: Plan, windows: torch.Tensor, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, torch.Tensor]:
        """Stored tensor → d(objective)/dW at the model under a plan, of the mean over the windows, as W is shaped.

        One window at a time, and each block is run again on the way back, so that the activations of one are held.
        """
        self._set({item.tensor: item for item in plan})
        wanted = {name: self.parameters[name] for name in (item.tensor for item in plan)}
        give_back()  # the peak of a search stands on what is held now
        with _trained_alone(self.model, wanted.values()), torch.enable_grad(), self.quick(), self._prefix.again():
            for place in range(len(windows)):
                mean = self.material.mean(self.model, windows[place : place + 1]) / len(windows)
                mean.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
                if progress is not None:
                    progress(place + 1, len(windows))
            # As narrow as trials multiply: what is taken of them is a sum over a tensor.
            return {name: _taken(parameter).to(self.passes or parameter.dtype) for name, parameter in wanted.items()}

    def carry_out(self, plan: Plan, calibration: torch.Tensor) -> None:
        """Change the model as `apply` would; `restore` does not know of it."""
        for turn, part in enumerate(plan.parts):
            how = replace(self._how(part), keep_zeros=turn > 0, shared=shared_reaches(part, self._matrices))
            if how.looks:
                jobs = self._jobs(part, how)
                with self.quick():
                    walk_blocks(self.model, self.material.inputs(calibration), BlockWork(jobs, Nowhere(), how))
                seen = {job.decision.tensor for job in jobs.values()}
            else:
                seen = set()
            for item in part:
                if not item.treatment.idle and item.tensor not in seen:
                    weight = self.parameters[item.tensor].detach().to(self.dtypes[item.tensor])
                    self._put(item.tensor, treated_tensor(weight, item, how, self.config))

    def check(self, plan: Plan) -> None:
        """`UsageError` where `apply` would not reach what the plan names."""
        for part in plan.parts:
            if (how := self._how(part)).looks:
                self._jobs(part, how)

    def _jobs(self, part: Plan, how: TreatmentSettings) -> dict[str, LayerJob]:
        host = Host(home_of(self.model), {tensor: place for place, tensor in self.places.items()})
        return jobs_of(part, host, self.dtypes, how)

    def _how(self, part: Plan) -> TreatmentSettings:
        """The operator of trials, which may be a lighter one than that of the plan."""
        own, first = how_of(part), self.judged or self.how
        return next((how for how in (first, first.then) if how is not None and how.operator.does ==
                     own.operator.does), own)  # fmt: skip

    def dense_losses(self, windows: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss a token of every window without any plan, (n,)."""
        self.restore()
        return self.material.scores(self.model, windows).losses

    def seconds_of_treating(self, plan: Plan, read: Callable[[], float]) -> float:
        """About how long it takes to make every tensor of a plan anew: one of each shape is made, and timed."""
        took: dict[tuple[int, ...], float] = {}
        for item in plan:
            if item.shape not in took and item.tensor in self.inputs:
                began = read()
                self.changed(item, self.inputs[item.tensor])
                took[item.shape] = read() - began
        return sum(took.get(item.shape, 0.0) for item in plan)

    def lighten(self) -> None:
        """Try by operators that do without XᵀX from here on; plans are judged by their own."""
        if self.judged is None:
            self.judged, self.how, self._made = self.how, _lightened(self.how), {}
            seen = {name: replace(item, hessian=None) for name, item in self.inputs.items()}
            self.inputs = seen if self.how.looks else {}

    def restore(self) -> None:
        """The dense weights again."""
        self._set({})

    def dense(self, tensor: str) -> torch.Tensor:
        """(count, out, in): the matrices of a tensor without any plan, as the model computes with them."""
        weight = self._dense.get(tensor, self.parameters[tensor].detach())
        return as_matrices(weight.to(self.parameters[tensor].dtype), tensor, self.config)

    def changed(self, decision: Decision, activations: Activations | None) -> torch.Tensor:
        """The tensor of an entry after it, with these inputs, in the dtype that it is stored in."""
        tensor = decision.tensor
        weight, layer = self._dense_of(tensor).to(self.dtypes[tensor]), self._layers.get(tensor)
        how, cast = self.how, decision.treatment.cast
        if cast is not None and merged_by_servers(cast.number_format):
            how = replace(how, shared={tensor: self.reaches(tensor)})
        if how.looks and layer is not None and is_prunable(layer):
            return treated_layer(layer, weight, decision, how, activations)[0]
        return treated_tensor(weight, decision, how, self.config)

    def reaches(self, tensor: str) -> Reaches:
        """Of each matrix of a tensor, the reach of all that servers hold as one with it, before any plan.

        Empty for those that are alone. Of a plan that prunes first, `carry_out` sees what is left, as `apply` does.
        """
        if tensor not in self._reaches:
            group = next((names for names in self.together if tensor in names), ())
            joined = joined_reaches(self._as_stored(self._dense_of(name), name) for name in group)
            self._reaches |= dict.fromkeys((tensor, *group), joined)
        return self._reaches[tensor]

    def _as_stored(self, weight: torch.Tensor, tensor: str) -> torch.Tensor:
        return as_matrices(weight.to(self.dtypes[tensor]), tensor, self.config)

    def _matrices(self, tensor: str) -> torch.Tensor:
        """As the model has it now."""
        return self._as_stored(self.parameters[tensor].detach(), tensor)

    def _set(self, wanted: Mapping[str, Decision]) -> None:
        for tensor in [name for name in self._now if name not in wanted]:
            self._put(tensor, self._dense[tensor])
            del self._now[tensor]
        for tensor, decision in wanted.items():
            if decision.treatment.idle:
                if self._now.pop(tensor, None) is not None:
                    self._put(tensor, self._dense[tensor])
            elif self._now.get(tensor) != decision.treatment:
                self._put(tensor, self._kept(decision))
                self._now[tensor] = decision.treatment

    @property
    def _few(self) -> bool:
        """Whether entries ask for one of a few things, so that what was computed is worth keeping."""
        return self.how.operator.does == "quantize"

    def _kept(self, decision: Decision) -> torch.Tensor:
        """The changed tensor, made once where it is likely to be asked for again."""
        key = decision.treatment
        weight = self._made.get((decision.tensor, key))
        if weight is not None:
            return weight
        weight = self.changed(decision, self.inputs.get(decision.tensor))
        if self._few and sum(item.nbytes for item in self._made.values()) < MOST_MADE:
            self._made[decision.tensor, key] = weight
        return weight

    def _first_changed(self) -> int:
        """The first block whose weights are others than those of the settled plan."""
        names = self._base.keys() | self._now.keys()
        moved = [self._block[name] for name in names if self._base.get(name) != self._now.get(name)]
        return min(moved, default=0)

    def under(self, decision: Decision) -> torch.Tensor:
        """The tensor of an entry as trials have it, without changing the model."""
        if decision.treatment.idle:
            return self._dense_of(decision.tensor)
        return self._kept(decision)

    def _dense_of(self, tensor: str) -> torch.Tensor:
        """Kept as it is stored, which may be narrower than what the model computes in."""
        if tensor not in self._dense:
            weight = self.parameters[tensor].detach()
            stored = weight.to(self.dtypes[tensor])
            self._dense[tensor] = stored.clone() if torch.equal(stored.to(weight.dtype), weight) else weight.clone()
        return self._dense[tensor]

    def _put(self, tensor: str, values: torch.Tensor) -> None:
        self.parameters[tensor].data.copy_(values)


@contextmanager
def _trained_alone(model: nn.Module, wanted: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients reach these parameters alone, without dropout, for a while."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    training = model.training
    model.eval()
    model.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
            parameter.grad = None
        model.train(training)


def _taken(parameter: nn.Parameter) -> torch.Tensor:
    """Its gradient, which it is then without; zeros where nothing reached it."""
    found, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if found is None else found


@dataclass(frozen=True)
class Looking:
    """How a trial looks at the model: on what, at which rows of it for the inputs of layers, multiplying in what."""

    windows: torch.Tensor  # (n, length): rows of `material`, which calibrate the operators that look at inputs
    material: Material = field(default_factory=Text)
    passes: torch.dtype | None = None
    progress: Callable[[int, int], None] | None = None  # takes the blocks that were looked at, and all


def trial_of(
    model: nn.Module,
    places: Mapping[str, str],
    plan: Plan,
    looking: Looking,
    stored: tuple[Mapping[str, Any], Mapping[str, torch.dtype]],
) -> tuple[Trial, tuple[str, ...]]:
    """A trial of plans for the tensors of `plan`, and notes.

    `places` are stored tensor → parameter; `stored` are the config of the checkpoint and the dtypes of its tensors.
    """
    named = dict(model.named_parameters())
    lost = [item.tensor for item in plan if places.get(item.tensor) not in named]
    if lost:
        raise UsageError(
            f"{len(lost)} tensors of the plan have no place in the model, first {lost[0]}",
            fix="leave them out by --layers, or plan without a search",
        )
    parameters = {item.tensor: named[places[item.tensor]] for item in plan}
    how, notes = _affordable(how_of(plan), plan)
    tensors = {places[item.tensor]: item.tensor for item in plan}
    together = [tuple(item.tensor for item in group) for group in in_one_matrix(plan)]
    trial = Trial(model, parameters, tensors, *stored, how, looking.material, passes=looking.passes, together=together)
    trial.check(plan)
    if how.looks:
        with trial.quick():
            trial.inputs = seen_by(
                model, tensors, how.needs, looking.material.inputs(looking.windows), looking.progress
            )
    return trial, notes


def hessian_bytes(plan: Plan) -> int:
    """What XᵀX of every layer takes at most while it is summed, each matrix of a stack by itself."""
    nbytes = 0
    for item in plan:
        count = item.shape[0] if len(item.shape) == 3 else 1
        nbytes += 8 * count * max(item.shape[-2:], default=0) ** 2
    return nbytes


def _affordable(how: TreatmentSettings, plan: Plan) -> tuple[TreatmentSettings, tuple[str, ...]]:
    hessians = hessian_bytes(plan)
    if how.needs != "hessian" or hessians <= MOST_HESSIANS:
        return how, ()
    heavy = how.operator.name
    lighter = _lightened(how)
    return lighter, (f"trials took {lighter.operator.name}: {heavy} would hold {hessians >> 30} GiB of XᵀX",)


def _lightened(how: TreatmentSettings) -> TreatmentSettings:
    """The same by operators that do without XᵀX."""
    operator = OPERATORS[how.operator.lighter] if how.operator.needs == "hessian" else how.operator
    return replace(how, operator=operator, then=None if how.then is None else _lightened(how.then))


def seen_by(
    model: nn.Module,
    tensors: Mapping[str, str],
    need: Need,
    windows: Inputs,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Activations]:
    """Stored tensor → what its layer sees in one pass over the windows; `tensors` are parameter → stored tensor."""
    visitor = _Look(tensors, need)
    walk_blocks(model, windows, visitor, edits=False, progress=progress)
    return visitor.found


@dataclass
class _Look:
    """Visits every block and keeps what its layers see."""

    tensors: Mapping[str, str]  # parameter → stored tensor
    need: Need
    found: dict[str, Activations] = field(default_factory=dict)

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        return {name: self.need for name in block.layers() if f"{name}.weight" in self.tensors}

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:  # noqa: ARG002 - see Visitor
        """See `Visitor`."""
        self.found |= {self.tensors[f"{name}.weight"]: seen for name, seen in activations.items()}
