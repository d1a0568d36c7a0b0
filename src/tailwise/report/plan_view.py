"""A plan as tables: blocks down, roles across; its entries; what differs between two."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.diff import PlanDiff
from tailwise.compression.plans.patterns import BLOCK, EXPERTS
from tailwise.compression.plans.plan import Plan
from tailwise.report.grid import Grid, cut_words


def entries_grid(plan: Plan, rows: int = 100) -> Grid:
    """One line per tensor, with its reason."""
    shown = plan.decisions[:rows] if rows else plan.decisions
    lines = tuple((decision.tensor, _cell([decision]), decision.reason) for decision in shown)
    return _of_words(("tensor", "amount", "reason"), lines, len(plan) - len(shown))


def plan_grid(plan: Plan, rows: int = 100) -> Grid:
    """One line per block, a column per role, the parameter-weighted amount in each, and a total; 0 rows: all."""
    roles = list(dict.fromkeys(decision.role for decision in plan))
    blocks = sorted({decision.block for decision in plan if decision.block is not None})
    keys: list[int | None] = [*blocks, *([None] if any(decision.block is None for decision in plan) else [])]
    shown = keys[:rows] if rows else keys
    lines = [_line("–" if key is None else str(key), [d for d in plan if d.block == key], roles) for key in shown]
    lines.append(_line("all", list(plan), roles))
    return Grid(("block", *roles, "all", "parameters"), lines, below=cut_words(len(keys) - len(shown)))


def _line(title: str, decisions: Sequence[Decision], roles: Sequence[str]) -> tuple[str, ...]:
    cells = [_cell([decision for decision in decisions if decision.role == role]) for role in roles]
    return title, *cells, _cell(decisions), f"{sum(decision.n_params for decision in decisions):,}"


def _cell(decisions: Sequence[Decision]) -> str:
    if not decisions:
        return ""
    formats = dict.fromkeys(
        cast.fitted(decision.shape).name for decision in decisions if (cast := decision.treatment.cast) is not None
    )
    total = sum(decision.n_params for decision in decisions)
    mean = sum(decision.removed for decision in decisions) / total if total else 0.0
    if formats:
        quantized = [decision for decision in decisions if decision.treatment.cast is not None]
        text = next(iter(formats)) if len(formats) == 1 else f"{mean_bits(quantized):.3f} bits"
        return text if not any(decision.sparsity for decision in decisions) else f"{mean:.3f}, {text}"
    if len(decisions) == 1 and decisions[0].rank is not None:
        return f"{mean:.3f} r{decisions[0].rank}"
    patterns = {decision.pattern for decision in decisions}
    mixed = len(patterns) == 1 and (patterns & {BLOCK, EXPERTS} or ":" in next(iter(patterns)))
    return f"{mean:.3f} {next(iter(patterns))}" if mixed else f"{mean:.3f}"


def diff_grid(difference: PlanDiff, rows: int = 100) -> Grid:
    """One line per changed field, then the tensors that only one plan has."""
    lines = [(item.field, "", _text(item.before), _text(item.after)) for item in difference.head]
    lines += [(item.tensor, item.field, _text(item.before), _text(item.after)) for item in difference.changed]
    lines += [(tensor, "entry", "yes", "no") for tensor in difference.removed]
    lines += [(tensor, "entry", "no", "yes") for tensor in difference.added]
    shown = lines[:rows] if rows else lines
    return _of_words(("tensor", "field", "before", "after"), shown, len(lines) - len(shown))


def _of_words(heads: tuple[str, ...], lines: Sequence[Sequence[str]], left: int) -> Grid:
    every = range(len(heads))
    return Grid(heads, lines, below=cut_words(left), words=every, wrapping=every)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
