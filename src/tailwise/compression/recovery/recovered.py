"""What a recovery came to: quality before and after, and how it was had."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tailwise.compression.recovery.control import Control
from tailwise.compression.recovery.train_loop import Training
from tailwise.core.shown import Brief
from tailwise.models.evaluation.scores import ScoreComparison, Scores

RECOVERY_FILE = "tailwise_recovery.json"


@dataclass(frozen=True, repr=False)
class Recovered(Brief):
    """A model that was trained for a while after pruning."""

    output: Path
    method: str  # masked, lora, or lora, merged
    comparison: ScoreComparison  # the written model against the pruned one, on windows kept out of the training
    training: Training
    sparsity: tuple[float, float]  # share of zeros in the matrices of the blocks, before and after
    unmerged: Scores | None = None  # the adapter in memory, before it was merged, the zeros put back and all rounded
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    control: Control | None = None  # the dense model, trained as long
    seconds: float = 0.0  # of everything

    @property
    def before(self) -> Scores:
        """Of the pruned model."""
        return self.comparison.base

    @property
    def after(self) -> Scores:
        """Of what was written, read back."""
        return self.comparison.model

    @property
    def cost_of_merging(self) -> float | None:
        """Nats a token that merging, with the zeros put back, costs; None where nothing was merged."""
        if self.unmerged is None or self.unmerged.log_perplexity is None or self.after.log_perplexity is None:
            return None
        return self.after.log_perplexity - self.unmerged.log_perplexity

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "output": str(self.output),
            "method": self.method,
            "sparsity_before": self.sparsity[0],
            "sparsity_after": self.sparsity[1],
            "comparison": self.comparison.to_json(),
            "unmerged": None if self.unmerged is None else self.unmerged.to_json(),
            "cost_of_merging": self.cost_of_merging,
            "control": None if self.control is None else self.control.to_json(),
            "training": self.training.to_json(),
            "seconds": round(self.seconds, 1),
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }


def perplexity_words(scores: Scores) -> str:
    """`18.9 [17.2, 20.8]`; of a classifier its accuracy, `94.1% ± 1.2`."""
    if scores.tasks:
        accuracy = scores.tasks[0]
        error = "" if accuracy.stderr is None else f" ± {100 * accuracy.stderr:.1f}"
        return f"{100 * accuracy.value:.1f}%{error}"
    if scores.perplexity is None:
        return "not finite"
    around = "" if scores.interval is None else " [{:.4g}, {:.4g}]".format(*scores.interval)
    return f"{scores.perplexity:.4g}{around}"


def card(recovered: Recovered, source: str) -> str:
    """README.md."""
    return "\n".join(_lines(recovered, source)) + "\n"


def _lines(recovered: Recovered, source: str) -> Iterator[str]:
    library = ["library_name: peft"] if recovered.method == "lora" else []
    yield from ("---", "tags:", "- tailwise", "- pruned", *library, f"base_model: {json.dumps(source)}", "---", "")
    yield f"# {source.rstrip('/').rsplit('/', 1)[-1]}, recovered ({recovered.method})"
    yield ""
    what = "An adapter of peft for" if recovered.method == "lora" else "Trained for a while from"
    yield f"{what} `{source}`, by tailwise {version('tailwise')}. [{RECOVERY_FILE}]({RECOVERY_FILE}) has all numbers."
    yield ""
    measure = "accuracy on images" if recovered.after.tasks else "perplexity on windows"
    yield f"| | {measure} kept out of the training | zeros in the blocks |"
    yield "| --- | ---: | ---: |"
    yield f"| before | {perplexity_words(recovered.before)} | {recovered.sparsity[0]:.2%} |"
    if recovered.unmerged is not None:
        yield f"| adapter, not merged | {perplexity_words(recovered.unmerged)} | |"
    yield f"| after | {perplexity_words(recovered.after)} | {recovered.sparsity[1]:.2%} |"
    control = recovered.control
    if control is not None:
        yield f"| control: `{control.model}` | {perplexity_words(control.comparison.base)} | |"
        yield f"| control, trained as long | {perplexity_words(control.comparison.model)} | |"
    yield ""
    change = recovered.comparison.perplexity
    if recovered.comparison.conclusion:
        p = "" if change is None or change.p is None else f" (p = {change.p:.2g})"
        yield f"- {recovered.comparison.conclusion}{p}"
    for words in () if control is None else control.words():
        yield f"- {words}"
    training = recovered.training
    yield f"- best at step {training.best_step} of {training.steps} ({training.ended}, {training.seconds:.0f} s)"
    for name, value in sorted(recovered.settings.items()):
        yield f"- {name}: {value}"
    for note in recovered.notes:
        yield f"- {note}"
