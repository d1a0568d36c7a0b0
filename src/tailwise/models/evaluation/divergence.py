"""How far a model's next-token distributions are from those of its base, token by token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tailwise.models.evaluation.intervals import mean_interval
from tailwise.models.evaluation.losses import Progress, batch_for, device_of, logits_of, scoring, token_losses
from tailwise.models.evaluation.scores import DIVERGENCE_QUANTILES, PROBABILITY_QUANTILES, Divergence, Interval
from tailwise.models.evaluation.turn import Turn

if TYPE_CHECKING:
    import torch

Values = NDArray[np.float64]

#: Logits of both models widened to float32 at once.
_CHUNK = 1 << 23


def paired_losses(
    model: torch.nn.Module,
    base: torch.nn.Module,
    windows: torch.Tensor | Turn,
    *,
    batch: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> tuple[Values, Values, Divergence]:
    """Mean losses of every window of the model and of the base, (n,) nats a token, and what lies between the two.

    Each window, (length,) token ids, goes through both models at once, so nothing is kept of a token but four numbers.
    The losses are those of `window_losses`. Of a turn that ends early, all is of the windows that were scored, in the
    order of the text.
    """
    import torch

    turn = windows if isinstance(windows, Turn) else None
    windows = windows.shuffled if isinstance(windows, Turn) else windows
    parts: list[torch.Tensor] = []
    done, size = 0, batch or 1
    with scoring(model), scoring(base), torch.inference_mode():
        while done < len(windows):
            ids = windows[done : done + size]
            ours, theirs = logits_of(model, ids.to(device_of(model))), logits_of(base, ids.to(device_of(base)))
            parts.append(_of_tokens(ours, theirs.to(ours.device), ids.to(ours.device)).cpu())
            size = batch or max(1, batch_for(ours) // 2)
            done += len(ids)
            if progress is not None:
                progress(done, len(windows))
            if turn is not None and turn.ended.is_set():
                break
    tokens = torch.cat(parts)  # (n, length − 1, 5)
    tokens = tokens if turn is None else turn.in_order(tokens)
    after, before = (tokens[..., column].double().mean(dim=1).numpy() for column in (0, 1))
    return after, before, _summary(tokens[..., 2:].double().numpy(), seed)


def _of_tokens(ours: torch.Tensor, theirs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(n, length − 1, 5) float32: both losses, KL(base ‖ model), the change of the token's probability, same top."""
    import torch

    known = min(ours.shape[-1], theirs.shape[-1])  # embeddings are padded by some tools; tokens are the same
    rows = max(1, _CHUNK // known)
    divergences = []
    for one, other, window in zip(ours, theirs, ids, strict=True):
        losses, lines = (token_losses(part[None], window[None])[0] for part in (one, other)), []
        chunks = zip(one[:-1].split(rows), other[:-1].split(rows), window[1:].split(rows), strict=True)
        for part, of_base, next_ in chunks:
            q = part[:, :known].float().log_softmax(dim=-1)
            p = of_base[:, :known].float().log_softmax(dim=-1)
            divergence = (p.exp() * (p - q)).nan_to_num(nan=math.nan, posinf=math.inf).sum(dim=-1)
            at = next_[:, None].clamp(max=known - 1)
            moved = (q.gather(1, at).exp() - p.gather(1, at).exp())[:, 0]
            same = (q.argmax(dim=-1) == p.argmax(dim=-1)).float()
            lines.append(torch.stack([divergence, moved, same], dim=-1))
        divergences.append(torch.cat([torch.stack(list(losses), dim=-1), torch.cat(lines)], dim=-1))
    return torch.stack(divergences)


def _summary(tokens: NDArray[np.float64], seed: int) -> Divergence:
    """`tokens` is (n, length − 1, 3): divergence, change of probability, same top."""
    divergence, moved, same = (tokens[..., column] for column in range(3))

    def mean(values: NDArray[np.float64]) -> tuple[float | None, Interval | None]:
        by_window = values.mean(axis=1)
        whole = float(by_window.mean())
        return (whole, mean_interval(by_window, seed=seed)) if math.isfinite(whole) else (None, None)

    def quantiles(values: NDArray[np.float64], which: tuple[float, ...]) -> dict[str, float | None]:
        if not np.isfinite(values).all():
            return {f"{100 * q:g}": None for q in which}
        return {f"{100 * q:g}": float(value) for q, value in zip(which, np.quantile(values, which), strict=True)}

    squares, of_squares = mean(moved**2)
    return Divergence(
        *mean(divergence),
        quantiles(divergence, DIVERGENCE_QUANTILES),
        *mean(same),
        *mean(moved),
        None if squares is None else math.sqrt(squares),
        None if of_squares is None else (math.sqrt(max(0.0, of_squares[0])), math.sqrt(max(0.0, of_squares[1]))),
        quantiles(moved, PROBABILITY_QUANTILES),
        tokens=divergence.size,
        kl_by_window=tuple(float(kl) if math.isfinite(kl) else None for kl in divergence.mean(axis=1)),
    )
