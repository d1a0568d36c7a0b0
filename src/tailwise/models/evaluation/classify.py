"""`evaluate_images`: the accuracy of an image classifier, alone or against another on the same images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.evaluate import EvaluateOptions, versions, with_facts
from tailwise.models.evaluation.images import Images, image_losses, images_of, is_classifier, load_classifier
from tailwise.models.evaluation.intervals import wilson
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ScoreComparison, Scores, TaskScore

TASK = "images"


def evaluate_images(
    model: str, source: Any, *, against: str | Scores | None = None, options: EvaluateOptions | None = None
) -> Scores | ScoreComparison:
    """Accuracy and loss over the images that `images_of` takes, each with its standard error.

    With `against`, both classifiers see the same images, prepared as each of them asks, and are compared image by
    image. `max_windows` of the options draws so many images. Raises `UsageError`.
    """
    wanted = options or EvaluateOptions()
    scores = _scores(model, source, wanted)
    if against is None:
        return scores
    base = against if isinstance(against, Scores) else _scores(against, source, wanted)
    return compare_scores(scores, base, seed=wanted.seed)


def _scores(model: str, source: Any, options: EvaluateOptions) -> Scores:
    if not is_classifier(model):
        raise UsageError("is no image classifier of transformers", where=model, fix="score language models by --text")
    loaded = load_classifier(model, device=options.device)
    images = images_of(source, model, loaded.module.config, most=options.max_windows, seed=options.seed)
    scores = Scores(
        model=model,
        settings={"images": images.name, "n": len(images), "seed": options.seed, "device": options.device},
        versions=versions(with_tasks=False),
        tasks=task_scores_of(loaded.module, images),
        notes=images.notes,
    )
    accuracy = scores.tasks[0]
    low, high = wilson(round(accuracy.value * accuracy.n), accuracy.n)
    line = f"{model}: accuracy {accuracy.value:.1%} of {accuracy.n} images, 95 % {low:.1%} to {high:.1%} (Wilson)"
    scores = replace(scores, notes=(*scores.notes, line))
    return with_facts(scores, loaded) if options.facts else scores


def task_scores_of(model: Any, images: Images) -> tuple[TaskScore, ...]:
    """Accuracy and loss, with those of every image. Raises `UsageError` where there are no classes."""
    if images.labels is None:
        raise UsageError(
            "nobody says what the images show", where=images.name, fix="give a folder with a folder for each class"
        )
    losses, right = image_losses(model, images.pixels, images.labels)
    n = len(losses)
    accuracy = float(right.mean())
    return (
        TaskScore(TASK, "acc", accuracy, math.sqrt(accuracy * (1 - accuracy) / n), n, True, tuple(map(float, right))),
        TaskScore(TASK, "loss", float(losses.mean()), float(losses.std(ddof=1)) / math.sqrt(n) if n > 1 else None, n,
                  False, tuple(map(float, losses))),
    )  # fmt: skip
