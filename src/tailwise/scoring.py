"""Scores: how well a model predicts text or does tasks, alone and against a base."""

from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.scores import (
    Divergence,
    ModelSize,
    ScoreChange,
    ScoreComparison,
    Scores,
    Speed,
    TaskScore,
)

__all__ = [
    "Divergence", "EvaluateOptions", "ModelSize", "ScoreChange", "ScoreComparison", "Scores", "Speed", "TaskScore",
    "evaluate",
]  # fmt: skip
