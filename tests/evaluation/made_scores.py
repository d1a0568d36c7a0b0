"""Scores without a model: windows as hard as they are, and what a model adds to each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tailwise.models.evaluation.divergence import _summary
from tailwise.models.evaluation.evaluate import summary
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ModelSize, ScoreComparison, Scores

WINDOWS = 24
HARD = np.random.default_rng(0).normal(3.4, 0.3, WINDOWS)


def made(name: str, extra: float, nbytes: int | None, *, noise: float = 0.02, seed: int = 1, **size: int) -> Scores:
    """A model that loses `extra` nats a token more than the base, more or less from window to window."""
    losses = HARD + extra + np.random.default_rng(seed).normal(0, noise, WINDOWS)
    perplexity, interval = summary(losses)
    facts = None if nbytes is None else ModelSize(
        1000, size.get("nonzero", 1000), 800, 800, nbytes, size.get("planned")
    )  # fmt: skip
    return Scores(name, perplexity, interval, tuple(map(float, losses)), 31, "one text", facts,
                  settings={"text": "story.txt"})  # fmt: skip


def against(model: Scores, base: Scores, kl: float) -> ScoreComparison:
    """The comparison, with a divergence of `kl` nats."""
    rng = np.random.default_rng(3)
    tokens = [rng.gamma(2.0, kl / 2, (WINDOWS, 31)), rng.normal(-kl / 50, kl / 10, (WINDOWS, 31)),
              (rng.random((WINDOWS, 31)) > kl / 4).astype(float)]  # fmt: skip
    return replace(compare_scores(model, base), divergence=_summary(np.stack(tokens, axis=-1), 0))
