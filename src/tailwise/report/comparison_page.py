"""Comparisons and rankings in the terminal, as Markdown and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from tailwise.core.harmless import cells
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta
from tailwise.judging.compare.conclusion import conclusion, how_far_is_told
from tailwise.judging.compare.correlation import Correlation
from tailwise.judging.compare.ranking import Ranking, no_verdict
from tailwise.judging.compare.size_of_change import scale
from tailwise.judging.compare.summary import SUMMARIES
from tailwise.report.grid import Grid
from tailwise.report.grid import to_csv as csv_text

#: Metric, title and digits of the change, after alpha.
_CHANGES = (
    ("alpha_hill", "Δ α Hill", 2),
    ("log_norm", "Δ log norm", 3),
    ("stable_rank", "Δ stable rank", 1),
    ("effective_rank", "Δ eff. rank", 1),
    ("num_traps", "Δ traps", 1),
)
#: Number of W − W₀, title and digits.
_WEIGHTS = (
    ("relative_change", "‖ΔW‖/‖W₀‖", 4),
    ("change_stable_rank", "stable rank ΔW", 1),
    ("change_effective_rank", "eff. rank ΔW", 1),
    ("change_num_spikes", "spikes ΔW", 0),
    ("cka", "CKA", 4),
    ("overlap_input", "overlap in", 3),
    ("overlap_output", "overlap out", 3),
)
_TITLES = {
    "layers": "matrices", "unmeasured": "unmeasured",
    "mean_alpha": "mean α", "mean_alpha_2_6": "mean α in 2–6", "layers_2_6": "layers in 2–6",
    "share_2_4": "share in 2–4",
    "mean_alpha_weighted": "mean α̂", "mean_alpha_hill": "mean α Hill", "mean_log_alpha_norm": "mean log α-norm",
    "mean_log_norm": "mean log norm", "mean_log_spectral_norm": "mean log λmax", "mean_stable_rank": "mean stable rank",
    "mean_effective_rank": "mean eff. rank", "mean_num_traps": "mean traps",
    "mean_one_minus_rd": "mean 1 − RD", "trusted_fits": "trusted α", "bulk_fits": "α of the bulk",
    "mean_alpha_all": "mean α of all", "mean_alpha_weighted_all": "mean α̂ of all",
    "mean_log_alpha_norm_all": "mean log α-norm of all",
}  # fmt: skip
#: Layers that are shown where no change of any is significant.
_UNSURE_ROWS = 10
#: Names of identical matrices that are listed; more are counted.
_FEW = 5
#: Characters of a name that numbers leave it, and between two columns.
_NAME, _GAP = 16, 2
_COUNTS = ("layers", "unmeasured", "trusted_fits", "bulk_fits", "layers_2_6")
_UNRANKED = ("bulk_fits", "mean_log_alpha_norm", "mean_log_spectral_norm", "mean_alpha_all", "mean_log_alpha_norm_all")
_RANKED = tuple(name for name in SUMMARIES if name not in _UNRANKED)


def terminal(comparison: Comparison, rows: int = 100) -> RenderableType:
    """Summary, roles and layers; layers that changed most surely come first."""
    parts: list[RenderableType] = [Text(f"{comparison.before} → {comparison.after}", style="bold")]
    parts.append(Text(conclusion(comparison), style="bold"))
    if hint := how_far_is_told(comparison):
        parts.append(Text(hint))
    for grid in grids(comparison, rows):
        parts += ["", _Drawn(grid)]
    for line in structure(comparison):
        parts.append(Text(line))
    parts += [Text(note, style="yellow") for note in comparison.notes]
    return Group(*parts)


def markdown(comparison: Comparison, rows: int = 0) -> str:
    """The same as Markdown."""
    parts = [f"# {comparison.after} against {comparison.before}", conclusion(comparison)]
    parts += [hint] if (hint := how_far_is_told(comparison)) else []
    parts += [_as_markdown(grid) for grid in grids(comparison, rows)]
    lines = [*structure(comparison), *comparison.notes]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in lines)]).rstrip() + "\n"


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Several comparisons, one after the other."""
    return "\n".join(markdown(comparison) for comparison in comparisons)


def grids(comparison: Comparison, rows: int) -> Iterator[Grid]:
    """Every table of a comparison; the longest has at most `rows` lines, 0 for all."""
    if any(layer.weights and not layer.identical for layer in comparison.layers):
        yield _weights_by_role(comparison)
        yield _weights(comparison, rows)
    yield _grid("model", ("", "before", "after", "change"), tuple(
        (_TITLES[name], *(_number(side, 0 if name in _COUNTS else 3) for side in (delta.before, delta.after)),
         _signed(delta.change, 0 if name in _COUNTS else 3))
        for name, delta in comparison.summary.items()
    ))  # fmt: skip
    if comparison.roles:
        yield _roles(comparison)
    if any(not layer.identical for layer in comparison.layers):
        yield _layers(comparison, rows)


def _roles(comparison: Comparison) -> Grid:
    counted = {role: [layer for layer in comparison.layers if layer.role == role] for role in
               dict.fromkeys(change.role for change in comparison.roles)}  # fmt: skip
    changes = {(change.role, change.metric): change for change in comparison.roles}
    shown = [(name, title) for name, title in (("alpha", "Δ α"), *((n, t) for n, t, _ in _CHANGES))
             if any(metric == name for _, metric in changes)]  # fmt: skip
    lines = []
    for role, layers in counted.items():
        cells = [str(len(layers)), str(sum(bool(d.significant) for d in _deltas(layers, "alpha")))]
        for name, _ in shown:
            change = changes.get((role, name))
            mark = "†" if change is not None and change.significant else ""
            cells.append("–" if change is None else f"{change.median_change:+.3g}{mark}")
        lines.append((role, *cells))
    heads = ("role", "matrices", "α changed", *(f"median {title}" for _, title in shown))
    below = f"† the layers of the role moved together (signed-rank test, false discovery rate {comparison.level:g})"
    return _grid("by role", heads, tuple(lines), below)


def _deltas(layers: Sequence[LayerDelta], metric: str) -> list[Delta]:
    return [layer.deltas[metric] for layer in layers if metric in layer.deltas]


def _layers(comparison: Comparison, rows: int) -> Grid:
    changed = [layer for layer in comparison.layers if not layer.identical]
    metrics = [item for item in _CHANGES if any(d.change is not None for d in _deltas(changed, item[0]))]
    ordered = sorted(changed, key=_sureness)
    sure = any(delta.significant for delta in _deltas(changed, "alpha"))
    most = rows if sure else min(rows, _UNSURE_ROWS)  # 0: all
    cut = ordered[:most] if most else ordered
    lines = tuple(_layer_line(layer, metrics) for layer in cut)
    heads = ("layer", "α before", "α after", "Δ α", "z", *(item[1] for item in metrics))
    below = f"significant at a false discovery rate of {comparison.level:g}"
    below = f"* {below}" if sure else f"no change of α is {below}; of a fine-tune, near its base, the test is cautious"
    below += "; ? a fit that is not trusted, on one side or both" if any(not layer.trusted for layer in cut) else ""
    left, same = len(changed) - len(cut), len(comparison.layers) - len(changed)
    below += f"; {left} more layers, --rows 0 shows all" if left else ""
    below += f"; {same} layers are identical" if same else ""
    return _grid("by layer, the surest change of α first", heads, lines, below)


def _sureness(layer: LayerDelta) -> float:
    delta = layer.deltas.get("alpha")
    return 0.0 if delta is None or delta.z is None else -abs(delta.z)


def _layer_line(layer: LayerDelta, metrics: Sequence[tuple[str, str, int]]) -> tuple[str, ...]:
    alpha = layer.deltas.get("alpha", Delta(None, None, None))
    doubt = "" if layer.trusted or alpha.change is None else "?"
    cells = [_number(alpha.before, 2), _number(alpha.after, 2), _marked(alpha, 2) + doubt, _signed(alpha.z, 1)]
    cells += [_marked(layer.deltas.get(name, Delta(None, None, None)), digits) for name, _, digits in metrics]
    return (layer.name, *cells)


def _weights_by_role(comparison: Comparison) -> Grid:
    lines = []
    for role in dict.fromkeys(layer.role for layer in comparison.layers):
        layers = [layer for layer in comparison.layers if layer.role == role and layer.weights]
        sizes = {layer.name: layer.weights["relative_change"] for layer in layers if "relative_change" in layer.weights}
        if sizes:
            most = max(sizes, key=lambda name: sizes[name])
            numbers = (_number(median(sizes.values()), 4), _number(sizes[most], 4))
            changed = sum(not layer.identical for layer in layers)
            lines.append((role, str(len(layers)), str(changed), *numbers, most if sizes[most] else "–"))
    heads = ("role", "matrices", "changed", "median ‖ΔW‖/‖W₀‖", "largest", "of")
    return _grid("W − W₀ by role", heads, tuple(lines))


def _weights(comparison: Comparison, rows: int) -> Grid:
    read = [layer for layer in comparison.layers if layer.weights and not layer.identical]
    ordered = sorted(read, key=lambda layer: -layer.weights.get("relative_change", 0.0))
    shown = [item for item in _WEIGHTS if any(item[0] in layer.weights for layer in read)]
    lines = tuple(
        (layer.name, *(_number(layer.weights.get(name), digits) for name, _, digits in shown))
        for layer in (ordered[:rows] if rows else ordered)
    )
    k = max((layer.weights.get("directions", 0.0) for layer in read), default=0.0)
    below = f"overlap of the {k:.0f} leading singular directions; two random subspaces of n dimensions have {k:.0f}/n"
    left = len(read) - len(lines)
    below = (f"{left} more layers moved less, --rows 0 shows all\n" if left else "") + f"{below}\n{scale()}"
    return _grid("W − W₀, the largest first", ("layer", *(title for _, title, _ in shown)), lines, below)


def structure(comparison: Comparison) -> list[str]:
    """What became of the layers that are not in both models as they were."""
    if comparison.identical:
        return ["all matrices are identical, to the byte"]
    if not comparison.layers:
        return ["no matrix is measured in both audits: nothing is compared"]
    same = [layer.name for layer in comparison.layers if layer.identical]
    lines = []
    if len(same) == len(comparison.layers):
        lines.append(f"all {len(same)} matrices that are measured in both are identical")
    elif 0 < len(same) <= _FEW:
        lines.append(f"identical: {', '.join(same)}")
    lines += [f"renamed: {old} → {new}" for old, new in comparison.renamed]
    lines += [f"reshaped: {name}, {old} → {new}" for name, old, new in comparison.reshaped]
    lines += [f"missing: {name}" for name in comparison.missing]
    lines += [f"added: {name}" for name in comparison.added]
    return lines if len(lines) <= 20 else [*lines[:20], f"… and {len(lines) - 20} more; --json has all"]


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """One line per layer and metric, full precision; numbers of W − W₀ have no `before`."""
    head = ("before", "after", "layer", "layer_before", "role", "block", "metric", "value_before", "value_after",
            "change", "z", "significant")  # fmt: skip
    return csv_text(head, (line for comparison in comparisons for line in _csv_lines(comparison)))


def _csv_lines(comparison: Comparison) -> Iterator[Sequence[object]]:
    for layer in comparison.layers:
        about = (comparison.before, comparison.after, layer.name, layer.name_before, layer.role, layer.block)
        for name, d in layer.deltas.items():
            yield *cells(about), name, d.before, d.after, d.change, d.z, d.significant
        for name, value in layer.weights.items():
            yield *cells(about), name, None, value, None, None, None


def ranking_terminal(ranking: Ranking) -> RenderableType:
    """The models in order, and what the scores say."""
    said = no_verdict(ranking.by, ranking.models)
    parts: list[RenderableType] = [Text(_sentence(said), style="bold"), ""] if said else []
    for grid in ranking_grids(ranking):
        parts += [_Drawn(grid), ""]
    parts += [Text(ranking.direction, style="dim"), *(Text(note, style="yellow") for note in ranking.notes)]
    return Group(*parts)


def ranking_markdown(ranking: Ranking) -> str:
    """The same as Markdown."""
    parts = [_as_markdown(grid) for grid in ranking_grids(ranking)]
    lines = "\n".join(f"- {line}" for line in (ranking.direction, *ranking.notes))
    said = no_verdict(ranking.by, ranking.models)
    head = [f"# Ranking by {_TITLES[ranking.by]}", *([_sentence(said)] if said else [])]
    return "\n\n".join([*head, *parts, lines]) + "\n"


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:]}."


def ranking_csv(ranking: Ranking) -> str:
    """One line per model."""
    return csv_text(
        ("position", "name", "model", *SUMMARIES, "score"),
        ((index, *cells((model.name, model.model)), *(model.values[name] for name in SUMMARIES), model.score)
         for index, model in enumerate(ranking.models, 1)),
    )  # fmt: skip


def ranking_grids(ranking: Ranking) -> Iterator[Grid]:
    """The models, and the correlations where there are scores."""
    shown = [name for name in _RANKED if any(model.values[name] is not None for model in ranking.models)]
    shown.sort(key=lambda name: name != ranking.by)
    scored = any(model.score is not None for model in ranking.models)
    heads = ("model", *(_TITLES[name] for name in shown), *(("score",) if scored else ()))
    lines = tuple(
        (model.name, *(_number(model.values[name], 0 if name in _COUNTS else 3) for name in shown),
         *((_number(model.score, 4),) if scored else ()))
        for model in ranking.models
    )  # fmt: skip
    yield _grid(f"by {_TITLES[ranking.by]}", heads, lines)
    if ranking.correlations:
        heads = ("against the scores", "Kendall τ", "95 %", "p", "Spearman ρ", "95 %", "p", "models")
        yield _grid("scores", heads, tuple(_correlation_lines(ranking.correlations)))


def _correlation_lines(correlations: Sequence[Correlation]) -> Iterator[tuple[str, ...]]:
    for metric in dict.fromkeys(item.metric for item in correlations):
        kinds = {item.kind: item for item in correlations if item.metric == metric}
        cells = [_TITLES[metric]]
        for item in (kinds["kendall"], kinds["spearman"]):
            interval = "–" if item.low is None or item.high is None else f"{item.low:+z.2f} to {item.high:+z.2f}"
            cells += [_signed(item.value, 2), interval, "–" if item.p is None else f"{item.p:.2g}"]
        yield (*cells, str(kinds["kendall"].n))


class _Drawn:
    """A grid in as many columns as fit beside names of some length; the last ones go first, and are counted."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        grid, kept = self._grid, self._fitting(options.max_width)
        yield grid.only(kept)
        if rest := len(grid.heads) - len(kept):
            columns = "column needs" if rest == 1 else "columns need"
            yield Text(f"{rest} more {columns} a wider terminal, or -o x.csv", style="dim")
        if grid.below:
            yield Text(grid.below, style="dim")

    def _fitting(self, room: int) -> list[int]:
        """Columns: the names, the first number, a score, and of the others those that there is room for."""
        names, *widths = (
            max(len(head), *(len(line[index]) for line in self._grid.lines), 1)
            for index, head in enumerate(self._grid.heads)
        )
        last = len(widths)
        columns = [0, 1] if last else [0]
        columns += [last] if self._grid.heads[-1] == "score" and last > 1 else []
        left = room - min(names, _NAME) - sum(_GAP + widths[index - 1] for index in columns[1:])
        for index in range(2, last + 1):
            if index not in columns:
                left -= _GAP + widths[index - 1]
                if left < 0:
                    break
                columns.append(index)
        return sorted(columns)


def _grid(title: str, heads: tuple[str, ...], lines: Sequence[Sequence[str]], below: str = "") -> Grid:
    # Where there is no room, names are broken into lines: a number that is cut is another number.
    return Grid(heads, lines, title, below, wrapping=(0,), overflow="fold")


def _as_markdown(grid: Grid) -> str:
    return f"## {grid.title.capitalize()}\n\n{grid.to_markdown()}" + (f"\n\n{grid.below}" if grid.below else "")


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == round(value) and abs(value) >= 10 else f"{value:z.{digits}f}"


def _signed(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    # What rounds to zero has no sign: -0.00 is neither a fall nor a rise.
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def _marked(delta: Delta, digits: int) -> str:
    return _signed(delta.change, digits) + ("*" if delta.significant else "")
