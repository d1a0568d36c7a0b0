"""The loss of a causal language model on windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.turn import Turn

if TYPE_CHECKING:
    import torch

#: Bytes of logits made at once. Small on a CPU, where logits that leave the cache cost more than batches save.
_LOGITS = {"cpu": 1 << 24}
_LOGITS_ELSEWHERE = 1 << 30
#: Logits widened to float32 at once.
_CHUNK = 1 << 24
_MAX_BATCH = 64
_PROBE = 8  # tokens of the test for causality

Progress = Callable[[int, int], None]  # windows done, windows in all


def window_losses(
    model: torch.nn.Module,
    windows: torch.Tensor | Turn,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Mean loss in nats a token of every window, (n,).

    `windows` is (n, length) of token ids, int64. The first token of a window is context and is not predicted; the
    other length − 1 are, each from those before it in its window. The log-softmax is in float32, whatever the
    model computes in. `batch` is the number of windows at once; by default as many as keep the logits small, but
    never less than one: logits of length × vocabulary are the least that is held. Of a turn that ends
    early, losses are of the windows that were scored, in the order of the text.
    """
    import torch

    turn = windows if isinstance(windows, Turn) else None
    windows = windows.shuffled if isinstance(windows, Turn) else windows

    if windows.ndim != 2 or windows.shape[1] < 2 or len(windows) == 0:
        raise UsageError(f"windows are (n ≥ 1, length ≥ 2), not {tuple(windows.shape)}", fix="make them by windows_of")
    device = device_of(model)
    losses: list[torch.Tensor] = []
    done, size = 0, batch or 1
    with scoring(model), torch.inference_mode():
        while done < len(windows):
            part = windows[done : done + size].to(device)
            logits = logits_of(model, part)
            losses.append(token_losses(logits, part).cpu())
            size = batch or batch_for(logits)
            done += len(part)
            if progress is not None:
                progress(done, len(windows))
            if turn is not None and turn.ended.is_set():
                break
    found = torch.cat(losses)
    found = found if turn is None else turn.in_order(found)
    return np.asarray(found.double().mean(dim=1).numpy())


@contextmanager
def scoring(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(n, length) token ids → (n, length, vocabulary) logits."""
    # Keys and values of a cache would be kept for nothing.
    output: Any = model(input_ids=ids, use_cache=False) if hasattr(model, "config") else model(ids)
    return getattr(output, "logits", output)  # type: ignore[no-any-return]


def token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(n, length − 1) losses in float32. A slice of one window is not copied, and is widened part by part."""
    import torch
    from torch.nn.functional import cross_entropy

    rows = max(1, _CHUNK // logits.shape[-1])
    losses = []
    for scores, window in zip(logits, ids, strict=True):
        pairs = zip(scores[:-1].split(rows), window[1:].split(rows), strict=True)
        losses.append(torch.cat([cross_entropy(part.float(), next_, reduction="none") for part, next_ in pairs]))
    return torch.stack(losses)


def batch_for(logits: torch.Tensor) -> int:
    """Windows at once whose logits stay small; `logits` are those of some windows, (n, length, vocabulary)."""
    budget = _LOGITS.get(logits.device.type, _LOGITS_ELSEWHERE)
    return max(1, min(_MAX_BATCH, budget // (logits[0].numel() * logits.element_size())))


def device_of(model: torch.nn.Module) -> torch.device:
    """Where its parameters are."""
    import torch

    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def check_causal(model: torch.nn.Module, vocabulary: int, where: str) -> None:
    """`UsageError` if a token changes what the model says of the tokens before it, as in BERT."""
    import torch

    ids = torch.arange(1, _PROBE + 1).remainder(vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + vocabulary // 2) % vocabulary
    with torch.inference_mode():
        logits = logits_of(model, ids.to(device_of(model)))[:, :-1]
    one, other = logits.float()
    # A trained model that looks ahead moves its logits by as much as they vary, a random one by some thousandths.
    rounding = 1e-4 if logits.dtype == torch.float32 else 2e-2
    if float((one - other).abs().max()) > rounding * float(one.std()):
        raise UsageError(
            "it looks at later tokens, so it has no perplexity", where=where, fix="give a causal language model"
        )
