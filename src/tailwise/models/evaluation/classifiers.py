"""Accuracy of a classifier, with an interval."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import wilson
from tailwise.models.evaluation.scores import Interval

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ClassifierScores:
    """How often the class with the largest logit is the right one."""

    accuracy: float
    interval: Interval  # 95 %, Wilson 1927
    loss: float  # mean cross-entropy, nats
    n: int
    correct: tuple[bool, ...]  # of every example, in the order of the loader


def classifier_scores(model: torch.nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> ClassifierScores:
    """Score `model` on batches of (inputs, labels); labels are class numbers, (n,).

    The model gives logits, (n, classes), or something that has them as `.logits`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    first = next(iter(model.parameters()), None)
    training, correct, total = model.training, list[bool](), 0.0
    model.eval()
    try:
        with torch.inference_mode():
            for inputs, labels in loader:
                given = inputs if first is None else inputs.to(first.device)
                output = model(given)
                logits = getattr(output, "logits", output).float().cpu()
                total += float(cross_entropy(logits, labels.cpu(), reduction="sum"))
                correct += (logits.argmax(dim=1) == labels.cpu()).tolist()
    finally:
        model.train(training)
    n = len(correct)
    if n == 0:
        raise UsageError("there are no examples", fix="give a loader with at least one batch")
    return ClassifierScores(sum(correct) / n, wilson(sum(correct), n), total / n, n, tuple(correct))
