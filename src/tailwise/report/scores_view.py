"""Scores of models in the terminal: perplexity with its interval, tasks, and what changed against a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tailwise.models.evaluation.scores import Interval, ScoreChange, ScoreComparison, Scores


def _grid(titles: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", overflow="fold")
    return table


def models_in(both: Sequence[Scores]) -> RenderableType:
    """A row for each model: perplexity, size and speed, as far as they were measured."""
    from rich.text import Text

    titles = ["model"]
    if any(scores.losses for scores in both):
        titles += ["perplexity", "95 %", "windows"]
    if any(scores.facts for scores in both):
        titles += ["parameters", "exact zeros", "in blocks", "stored"]
    if any(scores.speed for scores in both):
        titles += ["prefill tokens/s", "decode tokens/s", "threads"]
    table = _grid(titles)
    for scores in both:
        cells = _cells(scores)
        table.add_row(*(Text(cells.get(title, "–")) for title in titles))
    return table


def _cells(scores: Scores) -> dict[str, str]:
    from rich.filesize import decimal

    cells = {"model": scores.model}
    if scores.losses:
        cells |= {"perplexity": _number(scores.perplexity), "95 %": _range(scores.interval)}
        there = scores.settings.get("windows")
        of = f" of {there}" if isinstance(there, int) and there > len(scores.losses) else ""
        cells["windows"] = f"{len(scores.losses)}{of} × {scores.tokens_per_window + 1}"
    if (size := scores.facts) is not None:
        cells |= {"parameters": f"{size.parameters:,}", "exact zeros": f"{size.sparsity:.1%}"}
        cells |= {"in blocks": f"{size.block_sparsity:.1%}", "stored": decimal(size.nbytes)}
    if (speed := scores.speed) is not None:
        cells |= {"prefill tokens/s": f"{speed.prefill:,.0f}", "threads": str(speed.threads)}
        cells["decode tokens/s"] = "–" if speed.decode is None else f"{speed.decode:,.1f}"
    return cells


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}" if value < 1e4 else f"{value:.3e}"


def _range(interval: Interval | None, form: str = ".4g") -> str:
    return "–" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def tasks_in(both: Sequence[Scores]) -> RenderableType | None:
    """A row for each task of each model; None where none was asked."""
    if not any(scores.tasks for scores in both):
        return None
    table = _grid(["task", "metric", *(["model"] if len(both) > 1 else []), "value", "± standard error", "documents"])
    for scores in both:
        for one in scores.tasks:
            error = "–" if one.stderr is None else f"{one.stderr:.4f}"
            who = [scores.model] if len(both) > 1 else []
            table.add_row(one.task, one.metric, *who, f"{one.value:.4f}", error, str(one.n))
    return table


_COLORS = {"better": "green", "worse": "red"}


def changes_in(comparison: ScoreComparison) -> RenderableType | None:
    """What changed against the base, each with its test; None where nothing was measured in both."""
    from rich.text import Text

    from tailwise.report.evaluations.evaluation_tables import p_words

    changes: list[ScoreChange] = [*([comparison.perplexity] if comparison.perplexity else []), *comparison.tasks]
    if not changes:
        return None
    table = _grid(["against the base", "change", "95 %", "p", "pairs", "independent", "verdict"])
    for one in changes:
        change = "–" if one.change is None else f"{one.change:+z.4f}"
        if one is comparison.perplexity and comparison.ratio is not None:
            change += f" (perplexity × {comparison.ratio:.4f})"
        verdict = Text(one.verdict, style=_COLORS.get(one.verdict, ""))
        runs = "–" if one.runs is None else str(one.runs)
        table.add_row(one.name, change, _range(one.interval, "+z.4f"), p_words(one), str(one.n), runs, verdict)
    return table


#: What the column of that name counts.
_INDEPENDENT = (
    "independent: windows that follow one another are alike, so the test takes runs of them, as long as it needs for "
    "what is left to be independent; so many there were."
)
#: What the table of the divergence says, and the verdict does not.
_HOW_FAR = (
    "How far the answers moved from the base's (KL 0: not at all), for better or worse; "
    "the verdict is of the loss alone."
)


def divergence_in(comparison: ScoreComparison) -> RenderableType | None:
    """What llama.cpp's users know as the KL divergence statistics, each with its interval."""
    from tailwise.report.evaluations.evaluation_tables import divergence_grid

    one = comparison.divergence
    return None if one is None else divergence_grid(one, comparison.perplexity)


def below(comparison: ScoreComparison) -> list[str]:
    """What the columns of the tables mean, where they have something to say."""
    changes = [*([comparison.perplexity] if comparison.perplexity else []), *comparison.tasks]
    said = [_INDEPENDENT] if any(one.runs not in (None, one.n) for one in changes) else []
    return said + ([_HOW_FAR] if comparison.divergence is not None else [])


def notes_in(result: Scores | ScoreComparison, both: Sequence[Scores]) -> list[str]:
    """Notes of the models and of their comparison, each once."""
    own = () if result in both else result.notes
    return list(dict.fromkeys([*(note for scores in both for note in scores.notes), *own]))
