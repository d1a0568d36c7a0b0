"""What a training program saved: which of its parts are the model's weights, and which are not.

Wrappers are taken off, the state of optimizers is left out by its shape, and of weights beside their moving average the
weights are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.formats.memory import plain_names
from tailwise.checkpoints.layout import is_average
from tailwise.core.errors import UnreadableError
from tailwise.core.harmless import listed, shortened

if TYPE_CHECKING:
    import torch

    Tree = dict[str, "torch.Tensor | Tree"]

#: Keys under which training code keeps the model in a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params", "shadow")
#: Parts of a training checkpoint that hold tensors but no weights.
_NOT_WEIGHTS = frozenset(
    {
        "optimizer",
        "optimizers",
        "optimizer_state_dict",
        "optimizer_states",
        "optim",
        "scheduler",
        "scheduler_state_dict",
        "lr_scheduler",
        "lr_schedulers",
        "scaler",
        "rng_state",
        "rng_states",
        "callbacks",
        "loops",
    }
)
#: Names that optimizers give what they keep of one parameter.
_MOMENTS = ("exp_avg", "exp_inf", "max_exp_avg", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "step")
#: Where Lightning's WeightAveraging puts the weights while it saves their average as the model, and its own counters.
_LIGHTNING, _AVERAGING = "current_model_state", "averaging_state"
_DEEPEST = 64
_MOST = 1 << 18  # tensors; containers that hold each other would give more


@dataclass
class Saved:
    """The tensors that were taken from what was saved."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)  # name → the keys that lead to it, joined with dots
    parts: tuple[str, ...] = ()  # keys that can be asked for in place of what was taken
    part: str = ""  # the one that was asked for
    notes: tuple[str, ...] = ()


def find_tensors(saved: Any, part: str | None = None) -> Saved:
    """The model's tensors in what was saved: wrappers are taken off, other nesting is joined with dots.

    `part` is the key of what to take in place of the weights, as `model_ema`; where there is none of that name, the
    weights are taken and `Saved.part` is empty.
    """
    import torch

    if isinstance(saved, torch.Tensor):
        return Saved({"weight": saved}, {"weight": "weight"})
    left_out: list[str] = []
    tree = _Pruning(left_out).weights_of(saved)
    tensors = Saved()
    if left_out:
        tensors.notes = (f"left out, for it is the state of training and no weights: {listed(left_out)}",)
    keys: list[str] = []
    while tree:
        inner = _next(tree, part if not tensors.part else None, tensors)
        if inner is None:
            break
        keys.append(inner)
        branch = tree[inner]
        tree = branch if isinstance(branch, dict) else {}
    left = _left(tree)
    tree = {key: value for key, value in tree.items() if key not in left}
    for key, tensor in _walk(tree, ""):
        name = plain_names(key)
        if name in tensors.tensors:
            raise UnreadableError(f"two tensors are named {name}", fix="save them under names of their own")
        tensors.tensors[name] = tensor
        tensors.places[name] = ".".join([*keys, key])
        if len(tensors.tensors) > _MOST:
            raise UnreadableError(f"names more than {_MOST} tensors", fix="check that this is a model's weights")
    return tensors


def _next(tree: Tree, part: str | None, saved: Saved) -> str | None:
    """The key to go on with, or None where `tree` is the weights. Parts and notes are added to `found`."""
    branches = [key for key, value in tree.items() if isinstance(value, dict)]
    if part in branches:
        saved.parts, saved.part = tuple(branches), part
        return part
    if not branches or _holds_matrices(tree):
        return None
    if _LIGHTNING in branches and "state_dict" in branches:
        saved.parts = tuple(key for key in branches if key != _AVERAGING)
        saved.notes += (_beside(["state_dict"], [_LIGHTNING]),)
        return _LIGHTNING
    averages = [key for key in branches if is_average(key, branches)]
    plain = [key for key in branches if key not in averages]
    if not plain:
        saved.notes += (f"only averaged weights are there, and were taken: {listed(averages)}",)
        return averages[0] if len(averages) == 1 else None
    if averages:
        saved.parts = tuple(branches)
        saved.notes += (_beside(averages, plain),)
        if len(plain) == 1:
            return plain[0]
    return _wrapper(plain, saved)


def _wrapper(plain: list[str], saved: Saved) -> str | None:
    """The one key that is a wrapper's."""
    if len(plain) > 1 and not saved.parts:
        saved.parts = tuple(plain)
    wrappers = [key for key in _WRAPPERS if key in plain]
    if len(wrappers) != 1:
        return None
    rest = [key for key in plain if key not in wrappers]
    if rest:
        saved.notes += (f"took {wrappers[0]}; beside it, and not read, are {listed(rest)} (--part NAME reads one)",)
    return wrappers[0]


def _beside(averages: list[str], plain: list[str]) -> str:
    return (
        f"took the weights ({listed(plain)}) and left out their moving average "
        f"(--part {shortened(averages[0], 200)} reads {'it' if len(averages) == 1 else 'one of ' + listed(averages)})"
    )


def _left(tree: Tree) -> set[str]:
    """The averages in `tree` that are left out for what they are averages of."""
    if _holds_matrices(tree):
        return set()
    branches = {name for name, value in tree.items() if isinstance(value, dict)}
    averages = {name for name in branches if is_average(name, branches)}
    return averages if len(averages) < len(branches) else set()


def _holds_matrices(tree: Tree) -> bool:
    """Whether matrices stand in `tree` itself: then nothing in it is a wrapper."""
    return any(not isinstance(value, dict) and value.ndim > 1 for value in tree.values())


class _Pruning:
    """Nested tensors alone: what holds none, and the state of optimizers, is not there."""

    def __init__(self, left_out: list[str]) -> None:
        self._left_out = left_out
        self._known: dict[int, Tree] = {}  # a container that stands in many places is looked through once

    def weights_of(self, value: Any, path: str = "", depth: int = 0) -> Tree:
        """The tensors in `value` that can be weights."""
        if id(value) in self._known:
            return self._known[id(value)]
        if depth > _DEEPEST:
            raise UnreadableError(f"is nested more than {_DEEPEST} deep at {path[:80]}", fix="it is no state dict")
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if _is_row(value) else ()
        tree = {}
        for key, item in items:
            weights = self._kept(str(key), item, f"{path}{key}", depth)
            if weights is not None:
                tree[str(key)] = weights
        self._known[id(value)] = tree
        return tree

    def _kept(self, key: str, item: Any, where: str, depth: int) -> torch.Tensor | Tree | None:
        import torch

        if isinstance(item, torch.Tensor):
            return item
        if key in _NOT_WEIGHTS or is_training_state(item):
            if _any_tensor(item):
                self._left_out.append(where)
            return None
        return self.weights_of(item, f"{where}.", depth + 1) or None


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)


def is_training_state(value: Any) -> bool:
    """Whether `value` has the shape of an optimizer's state, whatever key it has: `{state, param_groups}`, moments."""
    import torch

    if _is_row(value):
        return bool(value) and all(isinstance(item, Mapping) and is_training_state(item) for item in value)
    if not isinstance(value, Mapping):
        return False
    if "param_groups" in value and "state" in value:
        return True
    tensors = [str(key) for key, item in value.items() if isinstance(item, torch.Tensor)]
    moments = [key for key in tensors if key.startswith(_MOMENTS)]
    return len(moments) == len(tensors) and any(key != "step" for key in moments)


def _any_tensor(value: Any) -> bool:
    import torch

    todo, seen = [value], 0
    while todo and seen < _MOST:
        item, seen = todo.pop(), seen + 1
        if isinstance(item, torch.Tensor):
            return True
        if isinstance(item, Mapping):
            todo += item.values()
        elif _is_row(item):
            todo += item
    return False


def _walk(tree: Tree, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
