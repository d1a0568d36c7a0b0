"""Which blocks or experts a model can spare: blocks that turn its states least, experts that tokens seldom go to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import block_influence, least_influence
from tailwise.compression.shrinking.config_depth import depth_fields
from tailwise.compression.shrinking.experts_dropped import how_many, norms_of, picks, seldom, small, without_experts
from tailwise.compression.shrinking.experts_out import mixtures_of
from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields, check_least
from tailwise.models.evaluation.loading import check_length, load_tokenizer
from tailwise.models.evaluation.tokens import tokens_of
from tailwise.models.walking.calibrate import sample_windows
from tailwise.models.walking.hosts import Host, check_causal, load_host
from tailwise.models.walking.walk import blocks_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DropOptions:
    """Text, and where to compute."""

    calibration: Any  # what `tokens_of` takes
    samples: int = 32
    window: int = 512
    seed: int = 0
    device: str = "cpu"
    bos: str = "auto"  # whether windows begin with the token that begins a text

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, samples=1, window=2, seed=0)


def least_blocks(plan: Plan, model: str, count: int, options: DropOptions) -> dict[int, str]:
    """The `count` blocks of least influence on the states of `model`, and the reason for each."""
    if not options.calibration:
        raise UsageError(
            "the influence of a block is measured on text, and there is none",
            fix="give --calibration TEXT, or name the blocks with --blocks",
        )
    with _opened(plan, model, options) as (host, inputs, _):
        assert inputs is not None  # noqa: S101 - there is text
        blocks = [block.name for block in blocks_of(host.model)]
        depth_fields(host.model, blocks[-1:])  # where not even the last can go, nothing need be measured
        influence = block_influence(host, inputs)
        found = least_influence(plan, host.places, influence, count)
        gone = {item.tensor for item in plan if item.block in found}
        places = tuple(host.places.get(tensor, "") for tensor in gone)
        depth_fields(host.model, [name for name in blocks if any(place.startswith(f"{name}.") for place in places)])
    return found


def fewer_experts(plan: Plan, model: str, asked: str, options: DropOptions) -> Plan:
    """The plan in which `asked` experts of each block go: a number, or a share as `25%` or `0.25`.

    With text those that the router picks most seldom, without it those of the smallest norms.
    """
    with _opened(plan, model, options) as (host, inputs, checkpoint):
        mixtures = mixtures_of(host.model)
        count = how_many(asked, mixtures)
        if inputs is not None:
            gone = seldom(picks(host, inputs), count, mixtures.groups)
        else:
            gone = small(norms_of(checkpoint, host.places, mixtures), count, mixtures.groups)
        return without_experts(plan, gone, host.places)


@contextmanager
def _opened(
    plan: Plan, model: str, options: DropOptions
) -> Iterator[tuple[Host, dict[str, torch.Tensor] | None, Checkpoint]]:
    """The model, the windows of text where there is any, and the checkpoint."""
    windows = None
    if options.calibration:
        check_causal(model)
        tokens = tokens_of(options.calibration, load_tokenizer(model), bos=options.bos)
        windows = sample_windows(tokens.ids, options.samples, options.window, options.seed, tokens.bos)
    with open_checkpoint(model) as checkpoint:
        if wrong := plan.misfits({name: spec.numel for name, spec in checkpoint.tensors.items()}):
            raise UsageError(f"the plan does not fit the model: {wrong[0]}", where=model, fix="give its own --model")
        host = load_host(checkpoint, model, device=options.device)
        if windows is not None:
            check_length(host.model, options.window, model)
        yield host, None if windows is None else {"input_ids": windows}, checkpoint
