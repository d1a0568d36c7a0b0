"""The map of layers: blocks × roles, a cell a matrix (or several), coloured by a place among healthy models or by α.

One piece of HTML for the app and for the offline report: it needs no script, and every cell is a link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import estimator_of, usable, value_of
from tailwise.judging.diagnosis.atlas import Atlas, counted, default, depths
from tailwise.judging.diagnosis.finding import Diagnosis

#: The attributes of a link to the layers of these names.
To = Callable[[Sequence[LayerRow]], str]

_BANDS = (2.0, 4.0, 6.0)  # of alpha: the HT-SR bands
_UNTRUSTED = "a-"  # the class of a cell without a trusted fit
_MANY = 3000  # matrices, from which on a map has two ways to colour
_FEW = 3  # matrices of one cell that are named


@dataclass(frozen=True)
class Paint:
    """One way to colour the map."""

    key: str
    title: str
    caption: str
    colors: Mapping[str, tuple[str, str]]  # layer → (class of its colour, what is said)
    legend: tuple[tuple[str, str], ...]  # class, words


def paints(audit: Audit, atlas: Atlas | None = None) -> list[Paint]:
    """The ways to colour an audit: by its place among healthy models where enough are known, and by α."""
    whole = default() if atlas is None else atlas
    others = whole.without(audit)
    among = counted(others, whole)
    made = [_of_atlas(audit, others, metric, among) for metric in _TOLD]
    paints_ = [paint for paint in made if paint.colors]
    return [*paints_, *([_of_alpha(audit)] if any("alpha" in layer.row.metrics for layer in audit) else [])]


_TOLD = {"effective_rank": "effective rank", "stable_rank": "stable rank"}
_STEPS = (0.02, 0.1, 0.35, 0.65, 0.9, 0.98)


def _of_atlas(audit: Audit, others: Atlas, metric: str, among: str) -> Paint:
    place, colors, title = depths(audit.rows), {}, _TOLD[metric]
    for layer in audit:
        standing = others.standing(layer.row, metric, place[layer.row.name])
        if standing is not None:
            step = sum(standing.below > bound for bound in _STEPS)
            colors[layer.row.name] = (f"p{step}", str(standing))
    caption = (
        f"Colour: whether the {title}, relative to noise of the shape, is low or high among matrices of the same kind "
        f"in {among}. Neither end is a fault by itself."
    )
    return Paint(metric, f"{title} among healthy models", caption, colors, _OF_PLACES)


_OF_PLACES = (
    ("p0", "lower than in 98 % of healthy ones"),
    ("p1", "than in 90 %"),
    ("p2", "than in 65 %"),
    ("p3", "in the middle"),
    ("p4", "higher than in 65 %"),
    ("p5", "than in 90 %"),
    ("p6", "than in 98 % of healthy ones"),
)


def _of_alpha(audit: Audit) -> Paint:
    kind, colors = estimator_of(audit), {}
    for layer in audit:
        row, alpha = layer.row, usable(layer.row, "alpha", estimator_of(audit))
        shown = value_of(row, "alpha")
        if alpha is None:
            words = "no exponent" if shown is None else f"α {shown:.2f}, of a fit that is not trusted"
            colors[row.name] = (_UNTRUSTED, words)
        else:
            band = f"a{sum(alpha >= bound for bound in _BANDS)}" if kind == "ks" else "a1"
            colors[row.name] = (band, f"α {alpha:.2f}")
    legend: tuple[tuple[str, str], ...] = (
        ("a0", "α below 2"),
        ("a1", "2 to 4"),
        ("a2", "4 to 6"),
        ("a3", "above 6"),
        (_UNTRUSTED, "no trusted fit"),
    )
    if kind != "ks":
        legend = (("a1", "a trusted fit"), (_UNTRUSTED, "no trusted fit"))
    caption = "Colour: α of trusted fits, in the bands of HT-SR. Roles differ; compare along a row."
    return Paint("alpha", "α", caption, colors, legend)


def layer_map(audit: Audit, diagnosis: Diagnosis, to: To, atlas: Atlas | None = None) -> str:
    """The map as HTML; "" where nothing was measured."""
    rows = [layer.row for layer in audit]
    ways = paints(audit, atlas)
    if not rows or not ways:
        return ""
    if len(rows) > _MANY:
        ways = [ways[0], *ways[1:][-1:]]  # a page of many thousand cells is slow to load
    named = {name: item.severity for item in reversed(diagnosis.findings) if not item.noted for name in item.layers}
    blocks = sorted({row.block for row in rows if row.block is not None})
    roles = list(dict.fromkeys(row.role for row in rows if row.block is not None))
    outside = [row for row in rows if row.block is None]
    choice = "".join(
        f'<input type="radio" name="paint" id="paint-{way.key}" class="paint"{" checked" if index == 0 else ""}>'
        f'<label for="paint-{way.key}">{escape(way.title)}</label>'
        for index, way in enumerate(ways)
    )
    maps = "".join(
        f'<div class="map map-{way.key}">{_grid(way, rows, (blocks, roles), named, to)}'
        f'{_outside(way, outside, named, to)}<p class="quiet">{escape(way.caption)}</p>'
        f"{_legend(way, _also(way, rows, named))}</div>"
        for way in ways
    )
    return f'<div class="maps">{choice}{maps}</div>'


def _grid(
    way: Paint, rows: Sequence[LayerRow], axes: tuple[list[int], list[str]], named: Mapping[str, str], to: To
) -> str:
    blocks, roles = axes
    if not blocks:
        return ""
    there: dict[tuple[str, int], list[LayerRow]] = {}
    for row in rows:
        if row.block is not None:
            there.setdefault((row.role, row.block), []).append(row)
    every = max(1, -(-len(blocks) // 16))
    head = "".join(f"<th>{block if index % every == 0 else ''}</th>" for index, block in enumerate(blocks))
    body = "".join(
        f'<tr><th scope="row">{escape(role)}</th>'
        + "".join(f"<td>{_cell(way, there.get((role, block), []), named, to)}</td>" for block in blocks)
        + "</tr>"
        for role in roles
    )
    label = escape(f"Map of layers: {len(roles)} roles in {len(blocks)} blocks", quote=True)
    head = f"<thead><tr><th>block</th>{head}</tr></thead>"
    table = f'<table class="cells" aria-label="{label}">{head}<tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _outside(way: Paint, rows: Sequence[LayerRow], named: Mapping[str, str], to: To) -> str:
    if not rows:
        return ""
    by_role: dict[str, list[LayerRow]] = {}
    for row in rows:
        by_role.setdefault(row.role, []).append(row)
    cells = "".join(
        f"<span>{escape(role)}</span> {''.join(_cell(way, [row], named, to) for row in group[:_MOST])}"
        + (f' <span class="quiet">and {len(group) - _MOST} more</span>' if len(group) > _MOST else "")
        for role, group in by_role.items()
    )
    return f'<p class="outside">Outside the blocks: {cells}</p>'


_MOST = 40


def _cell(way: Paint, rows: Sequence[LayerRow], named: Mapping[str, str], to: To) -> str:
    """One place of the map; of several matrices, the colour in their middle, and how many they are."""
    if not rows:
        return ""
    names = [row.name for row in rows]
    color, says = _shown(way, names)
    severities = {named[name] for name in names if name in named}
    mark = " hit-error" if "error" in severities else " hit-warning" if severities else ""
    shown = ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
    title = escape(f"{shown}: {says}", quote=True)
    many = "" if len(names) == 1 else f"<b>{len(names)}</b>" if len(names) < _NO_ROOM else "<b>+</b>"
    return f'<a class="cell {color}{mark}" {to(rows)} title="{title}" aria-label="{title}">{many}</a>'


_NO_ROOM = 1000  # matrices, whose number a cell has no room for


def _shown(way: Paint, names: Sequence[str]) -> tuple[str, str]:
    """The class and the words of a cell: of several matrices, those of the middle one among what has a number."""
    known = [way.colors[name] for name in names if name in way.colors]
    numbers = sorted((item for item in known if item[0] != _UNTRUSTED), key=lambda item: item[0])
    chosen = numbers or known
    if not chosen:
        return "none", "too few healthy models to compare with"
    color, says = chosen[len(chosen) // 2]
    if len(names) == 1:
        return color, says
    of = f"{len(numbers)} of {len(names)} matrices" if len(numbers) < len(names) else f"{len(names)} matrices"
    return color, f"the colour is that of the middle one of {of if numbers else len(names)}, with {says}"


def _also(way: Paint, rows: Sequence[LayerRow], named: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Class, text and words of what a map shows beside the colours: rings, cells of several matrices, and no colour."""
    severities = {named[row.name] for row in rows if row.name in named}
    places = Counter((row.role, row.block) for row in rows if row.block is not None)
    found = [("plain hit-error", "", "ring: an error names it")] if "error" in severities else []
    found += [("plain hit-warning", "", "ring: a warning names it")] if severities - {"error"} else []
    most = max(places.values(), default=0)
    if most > 1:
        found.append(("plain", "<b>n</b>", "n matrices share the cell: the colour of the middle one, rings of any"))
    if any(row.name not in way.colors for row in rows):
        found.append(("none", "", "fewer than five healthy models to compare with"))
    return found


def _legend(way: Paint, also: Sequence[tuple[str, str, str]]) -> str:
    colors = "".join(f'<span class="key"><span class="cell {color}"></span>{escape(words)}</span>'
                     for color, words in way.legend)  # fmt: skip
    marks = "".join(f'<span class="key"><span class="cell {kind}">{text}</span>{escape(words)}</span>'
                    for kind, text, words in also)  # fmt: skip
    return f'<p class="legend">{colors}</p>' + (f'<p class="legend">{marks}</p>' if marks else "")
