"""How hard an example is, for `CurriculumSampler`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def token_rarity(sequences: Sequence[Sequence[int] | torch.Tensor], *, per_token: bool = False) -> list[float]:
    """−Σ ln p(token) of each sequence, p the token's share of all tokens; `per_token` divides by the length.

    The sum counts length as difficulty too, as the paper has it.

    Source: Platanios et al. 2019, arXiv:1903.09848, eq. 3.
    """
    lists = [item.tolist() if isinstance(item, torch.Tensor) else list(item) for item in sequences]
    counts = Counter(token for tokens in lists for token in tokens)
    total = sum(counts.values())
    rarity = {token: -math.log(count / total) for token, count in counts.items()}
    return [
        math.fsum(rarity[token] for token in tokens) / (max(len(tokens), 1) if per_token else 1) for tokens in lists
    ]


@torch.no_grad()
def loss_difficulty(model: nn.Module, sequences: Sequence[Sequence[int] | torch.Tensor]) -> list[float]:
    """Mean cross-entropy in nats a token that a causal language model has on each sequence.

    `model(ids)` gives logits, or an object that has them. One sequence at a time, so no padding enters; a sequence of
    fewer than two tokens has difficulty 0.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        return [_loss(model, torch.as_tensor(item, device=device)) for item in sequences]
    finally:
        model.train(training)


def _loss(model: nn.Module, ids: torch.Tensor) -> float:
    if len(ids) < 2:
        return 0.0
    output: Any = model(ids[None, :-1])
    logits = getattr(output, "logits", output)
    return float(nn.functional.cross_entropy(logits[0].float(), ids[1:].long()))
