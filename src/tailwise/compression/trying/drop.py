"""Which blocks a model can spare: those that turn its states least, on calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import block_influence, least_influence
from tailwise.compression.shrinking.config_depth import depth_fields
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.loading import check_length, load_tokenizer
from tailwise.models.evaluation.tokens import tokens_of
from tailwise.models.walking.calibrate import sample_windows
from tailwise.models.walking.hosts import check_causal, load_host
from tailwise.models.walking.walk import blocks_of


@dataclass(frozen=True)
class DropOptions:
    """Text, and where to compute."""

    calibration: Any  # what `tokens_of` takes
    samples: int = 32
    window: int = 512
    seed: int = 0
    device: str = "cpu"
    bos: str = "auto"  # whether windows begin with the token that begins a text


def least_blocks(plan: Plan, model: str, count: int, options: DropOptions) -> dict[int, str]:
    """The `count` blocks of least influence on the states of `model`, and the reason for each."""
    if not options.calibration:
        raise UsageError(
            "the influence of a block is measured on text, and there is none",
            fix="give --calibration TEXT, or name the blocks with --blocks",
        )
    check_causal(model)
    tokens = tokens_of(options.calibration, load_tokenizer(model), bos=options.bos)
    windows = sample_windows(tokens.ids, options.samples, options.window, options.seed, tokens.bos)
    with open_checkpoint(model) as checkpoint:
        if wrong := plan.misfits({name: spec.numel for name, spec in checkpoint.tensors.items()}):
            raise UsageError(f"the plan does not fit the model: {wrong[0]}", where=model, fix="give its own --model")
        host = load_host(checkpoint, model, device=options.device)
        check_length(host.model, options.window, model)
        blocks = [block.name for block in blocks_of(host.model)]
        depth_fields(host.model, blocks[-1:])  # where not even the last can go, nothing need be measured
        influence = block_influence(host, {"input_ids": windows})
        found = least_influence(plan, host.places, influence, count)
        gone = {item.tensor for item in plan if item.block in found}
        places = tuple(host.places.get(tensor, "") for tensor in gone)
        depth_fields(host.model, [name for name in blocks if any(place.startswith(f"{name}.") for place in places)])
    return found
