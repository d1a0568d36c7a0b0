"""How fast a model reads and writes: one sequence at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from tailwise.models.evaluation.scores import Speed

if TYPE_CHECKING:
    import torch

REPEATS = 5
DECODED = 32


def speed_of(model: Any, prompt: torch.Tensor, *, repeats: int = REPEATS, decoded: int = DECODED) -> Speed:
    """Tokens a second over `prompt`, (length,), and while `decoded` tokens are added greedily, one at a time.

    Medians of `repeats`, after one that does not count. Decoding starts from half of the prompt, so that it stays
    within the model's positions; it is None for a model that hands back no key-value cache.
    """
    import torch

    first = next(iter(model.parameters()))
    ids = prompt.to(first.device)[None]
    start = ids[:, : max(1, ids.shape[1] // 2)]
    count = max(1, min(decoded, ids.shape[1] - start.shape[1]))
    with torch.inference_mode():
        prefill = _timed(lambda: model(input_ids=ids, use_cache=False), first.device, repeats)
        cached = bool(_cache(model(input_ids=start, use_cache=True)))
        steps = [_decode(model, start, count) for _ in range(repeats + 1)][1:] if cached else []
    return Speed(
        prefill=ids.shape[1] / prefill,
        decode=count / median(steps) if steps else None,
        prompt=ids.shape[1],
        decoded=count,
        repeats=repeats,
        threads=torch.get_num_threads(),
        device=str(first.device),
        dtype=str(first.dtype).removeprefix("torch."),
    )


def _timed(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`."""
    seconds = []
    for _ in range(repeats + 1):
        begun = _now(device)
        work()
        seconds.append(_now(device) - begun)
    return median(seconds[1:])


def _decode(model: Any, start: torch.Tensor, count: int) -> float:
    """Seconds for `count` tokens after `start`, whose own pass does not count."""
    output = model(input_ids=start, use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    begun = _now(start.device)
    for _ in range(count):
        output = model(input_ids=token, use_cache=True, **_cache(output))
        token = output.logits[:, -1:].argmax(-1)
    return _now(start.device) - begun


def _cache(output: Any) -> dict[str, Any]:
    """The keys and values in a model's output, as the argument that gives them back: transformers renamed it."""
    for name in ("cache", "past_key_values"):
        if (value := getattr(output, name, None)) is not None:
            return {name: value}
    return {}


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
