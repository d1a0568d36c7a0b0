"""Names of layers, and what stands in for time."""

from __future__ import annotations

from collections.abc import Callable

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"


def stop_after(rounds: int) -> Callable[[], int]:
    """Counts calls, and raises at the last."""
    count = 0

    def call() -> int:
        nonlocal count
        count += 1
        if count == rounds:
            raise InterruptedError
        return count

    return call
