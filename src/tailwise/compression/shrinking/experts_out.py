"""Whole experts taken out of mixtures: what the config must say, and which rows of which tensors stay.

What follows the number of experts (rows of the router, its biases, stacks) is not known by name: the model that the
changed config describes is built without weights, and what differs in shape is cut where it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.fusing import expert_of
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.taking import DropExperts
from tailwise.compression.shrinking.config_depth import inside
from tailwise.core.errors import UsageError
from tailwise.models.walking.hosts import _empty
from tailwise.models.walking.towers import text_config_of

if TYPE_CHECKING:
    from tailwise.compression.shrinking.structured import Origin

#: What families call the number of routed experts in their configs.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: What they call the number of experts that a token is sent to.
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk", "moe_top_k")


@dataclass(frozen=True)
class Mixtures:
    """The mixtures of a model, by the names of the modules that hold their experts."""

    experts: int  # of each
    groups: int  # that the router chooses first, of experts that stand together; 1 where it does not
    chosen: int | None  # experts that a token is sent to, by the config
    names: tuple[str, ...]


@dataclass(frozen=True)
class ExpertCuts:
    """What becomes of stored tensors where experts go."""

    cuts: Mapping[str, tuple[int, torch.Tensor]] = field(default_factory=dict)  # stored → (axis, what stays)
    names: Mapping[str, str | None] = field(default_factory=dict)  # stored → its new name; None: it goes
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the config of the text tower
    notes: tuple[str, ...] = ()


def mixtures_of(model: nn.Module) -> Mixtures:
    """Of a model whose experts are layers of their own (`separated`). `UsageError` where its experts are not known."""
    text = text_config_of(model.config)
    names = tuple(name for name, module in model.named_modules() if hasattr(module, "_tailwise_kind"))
    counts = {value for name in _COUNTS if isinstance(value := getattr(text, name, None), int)}
    if not names or len(counts) != 1:
        there = any(name.endswith("experts") for name, _ in model.named_modules())
        uncounted = "its config does not count them once for all blocks"
        known = "they are held in a way that is not known" if counts else uncounted
        raise _refused(model, known if there else "it has none")
    chosen = next((value for name in _CHOSEN if isinstance(value := getattr(text, name, None), int)), None)
    return Mixtures(counts.pop(), _groups(text), chosen, names)


def _groups(text: Any) -> int:
    groups = getattr(text, "n_group", None)
    ignored = getattr(text, "topk_method", None) == "greedy"  # DeepSeek-V2-Lite's: groups are there and not used
    return groups if isinstance(groups, int) and not ignored else 1


def expert_cuts(plan: Plan, origin: Origin, dropped: Sequence[str]) -> ExpertCuts:
    """`UsageError` where the architecture does not allow what `plan` asks: before any weight is read.

    `dropped` are the modules of blocks that go as a whole.
    """
    chosen = [decision for decision in plan if isinstance(decision.treatment, DropExperts)]
    if not chosen:
        return ExpertCuts()
    mixtures = mixtures_of(origin.model)
    gone = _gone(chosen, origin, mixtures.names)
    left = [name for name in mixtures.names if not name.startswith(tuple(f"{block}." for block in dropped))]
    stay = _stays(gone, left, mixtures)
    fields, notes = _fields(origin.model, mixtures, len(next(iter(stay.values()))))
    cuts = _cut_where_shapes_differ(origin, fields, stay)
    names = _renamed(origin, stay)
    return ExpertCuts(cuts, names, fields, (*notes, *_beside(origin)))


def _gone(chosen: Sequence[Decision], origin: Origin, mixtures: Sequence[str]) -> dict[str, set[int]]:
    """Mixture → numbers of the experts that go."""
    gone: dict[str, set[int]] = {}
    for decision in chosen:
        place = origin.places.get(decision.tensor, "")
        name = next((name for name in mixtures if place.startswith(f"{name}.")), None)
        of = expert_of(place)
        if name is None or not (decision.experts or of):
            raise UsageError(
                "is in no mixture that experts can be taken out of",
                where=decision.tensor,
                fix="take the entry out of the plan",
            )
        gone.setdefault(name, set()).update(decision.experts or ({of[1]} if of else set()))
    return gone


def _stays(gone: Mapping[str, set[int]], mixtures: Sequence[str], known: Mixtures) -> dict[str, torch.Tensor]:
    """Mixture → the experts that stay, in order. One config counts them for all blocks."""
    each = {len(gone.get(name, ())) for name in mixtures}
    if len(each) > 1:
        named = ", ".join(f"{len(gone.get(name, ()))} of {name}" for name in mixtures[:3])
        raise UsageError(
            f"as many experts of every block must go, since config.json counts them once: {named}",
            fix="take as many out of each; `tailwise plan drop --experts` does",
        )
    wrong = next((number for numbers in gone.values() for number in numbers if number >= known.experts), None)
    if wrong is not None:
        raise UsageError(f"there is no expert {wrong}", fix=f"they are numbered 0 to {known.experts - 1}")
    left = known.experts - each.pop()
    if left < 1:
        raise UsageError("no expert would be left", fix="keep at least one of each block")
    stays = {
        name: torch.tensor([number for number in range(known.experts) if number not in gone.get(name, ())])
        for name in mixtures
    }
    if known.groups > 1:
        _check_groups(stays, known)
    return stays


def _check_groups(stay: Mapping[str, torch.Tensor], known: Mixtures) -> None:
    """The router chooses among groups of experts first, which stand one after the other and are equally large."""
    size = known.experts // known.groups
    for name, numbers in stay.items():
        sizes = {int((numbers // size == group).sum()) for group in range(known.groups)}
        if len(sizes) > 1 or min(sizes) < 2:  # the two best of a group say how good it is
            raise UsageError(
                f"its router chooses among {known.groups} groups of {size} experts, of which as many must stay in "
                "each, and two at least",
                where=name,
                fix="take as many out of each group; `tailwise plan drop --experts` does",
            )


def _fields(model: nn.Module, known: Mixtures, left: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the config of the text tower says with `left` experts in each block, and what is to be said of it."""
    text = text_config_of(model.config)
    own = text.to_dict()
    fields: dict[str, Any] = {name: left for name in _COUNTS if own.get(name) == known.experts}
    notes: tuple[str, ...] = ()
    if known.chosen is not None and known.chosen > left:
        fields |= {name: left for name in _CHOSEN if own.get(name) == known.chosen}
        # What is left is all that the router can choose: the others would have had a weight of zero.
        notes = (f"tokens went to {known.chosen} experts and now go to the {left} that are left",)
    return fields, notes


def _cut_where_shapes_differ(
    origin: Origin, fields: Mapping[str, Any], stay: Mapping[str, torch.Tensor]
) -> dict[str, tuple[int, torch.Tensor]]:
    before, after = _shapes(origin.model, {}), _shapes(origin.model, fields)
    if before.keys() != after.keys():
        other = sorted(before.keys() ^ after.keys())[0]
        raise _refused(origin.model, f"with fewer of them its config makes another model ({other})")
    cuts: dict[str, tuple[int, torch.Tensor]] = {}
    for name, shape in before.items():
        axes = [axis for axis, sizes in enumerate(zip(shape, after[name], strict=True)) if sizes[0] != sizes[1]]
        if not axes:
            continue
        mixture = next((mix for mix in stay if name.startswith(f"{mix.rpartition('.')[0]}.")), None)
        stored = origin.sources.get(name) or origin.sources.get(f"{name}.weight")
        if len(axes) > 1 or shape[axes[0]] - after[name][axes[0]] != _lost(origin.model, fields):
            raise _refused(origin.model, f"{name} would have the shape {list(after[name])}")
        if mixture is not None and stored is not None:  # one that is stored expert by expert is renamed
            cuts[stored] = (axes[0], stay[mixture])
    return cuts


def _lost(model: nn.Module, fields: Mapping[str, Any]) -> int:
    name = next(name for name in _COUNTS if name in fields)
    return int(text_config_of(model.config).to_dict()[name]) - int(fields[name])


def _shapes(model: nn.Module, fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Parameter or buffer → shape, in the model of transformers that the changed config describes."""
    config: Any = model.config
    changed = type(config).from_dict({**config.to_dict(), **inside(config, text_config_of(config), fields)})
    return {
        name: tuple(value.shape) for name, value in _empty(type(model), changed, torch.float32).state_dict().items()
    }


def _renamed(origin: Origin, stay: Mapping[str, torch.Tensor]) -> dict[str, str | None]:
    """Tensors of single experts: those of experts that go have no new name, the others the number they have now."""
    renamed: dict[str, str | None] = {}
    for parameter, stored in origin.sources.items():
        of = expert_of(parameter)
        here, there = (of, expert_of(stored)) if of else (None, None)
        if here is None or there is None or here[0] not in stay:
            continue
        now = stay[here[0]].tolist()
        rest = stored.removeprefix(f"{there[0]}.{there[1]}")
        renamed[stored] = f"{there[0]}.{now.index(here[1])}{rest}" if here[1] in now else None
    return renamed


def _beside(origin: Origin) -> Iterator[str]:
    """What the file holds of experts that are no part of the model: layers that foretell several tokens, say."""
    known = set(origin.sources.values())
    beside = [name for name in origin.checkpoint.tensors if "expert" in name and name not in known]
    beside = [name for name in beside if "shared" not in name]
    if beside:
        yield (
            f"{len(beside)} tensors of experts that transformers does not read stay as they are ({listed(beside)}): "
            "servers that read them (MTP) need their number of experts"
        )


def _refused(model: nn.Module, why: str) -> UsageError:
    return UsageError(
        f"experts of this {type(model).__name__} cannot go: {why}",
        fix="use an operator that leaves the shapes, such as magnitude",
    )
