"""The documented pictures of a study: one box plot, one per category, batches of layers, one per layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy
from tailwise.core.atomic import could_not_write
from tailwise.core.errors import UsageError, unknown_name
from tailwise.report.charts.chart import require_altair

Spec = dict[str, Any]

FORMATS = ("png", "pdf", "svg")
#: Names of files longer than this are cut; most file systems take 255 bytes.
_LONGEST = 120
_INDIVIDUAL = "individual_layers"
_EXTENSION = rf"\.(?:{'|'.join(FORMATS)})"
#: What an earlier run may have left, and nothing else.
_OWN = re.compile(rf"(?:alpha_distribution_by_precision|category_[\w.-]+|combined_batch_\d+){_EXTENSION}")
_OWN_LAYER = re.compile(rf"layer_\d{{3,}}_[\w.-]+{_EXTENSION}")


def check_plots(plot_format: str, max_layers: int) -> None:
    """`UsageError` before the work where the pictures could not be drawn."""
    if plot_format not in FORMATS:
        raise unknown_name("plot format", plot_format, FORMATS)
    if max_layers < 0:
        raise UsageError(f"{max_layers} layers a plot", fix="give one or more, or 0 for all in one")
    require_altair()


def write_plots(
    study: PrecisionStudy, folder: str | Path, *, plot_format: str = "png", max_layers: int = 10
) -> list[Path]:
    """Write the pictures into `folder` and give their paths; 0 layers a plot puts all in one.

    Pictures that an earlier run left there and this one does not make are removed; other files stay.
    Raises `UsageError` where nothing can be drawn, `UnreadableError` where nothing can be written.
    """
    check_plots(plot_format, max_layers)
    from tailwise.report.render import write_figure

    target = Path(folder)
    written = [
        Path(write_figure(_Ready(spec), target / f"{name}.{plot_format}"))
        for name, spec in _pictures(study, max_layers)
    ]
    _remove_stale(target, set(written))
    return written


@dataclass(frozen=True)
class _Ready:
    """A spec that stands where a figure is asked for."""

    spec: Spec

    def to_dict(self, **_: Any) -> Spec:
        return self.spec


def _pictures(study: PrecisionStudy, max_layers: int) -> Iterator[tuple[str, Spec]]:
    from tailwise.report.precision.figures import FIGURES
    from tailwise.report.precision.pictures import Bars, ladder
    from tailwise.report.precision.precision_view import StudyView
    from tailwise.report.render import spec_of

    view = StudyView(study=study)
    name = "alpha_distribution_by_precision"
    yield name, spec_of(FIGURES[name], view)
    for category in dict.fromkeys(layer.category for layer in study.layers):
        members = [layer for layer in study.layers if layer.category == category]
        yield f"category_{safe_name(category)}", ladder(view, members, f"α by format: {category}")
    for number, batch in enumerate(batches(study.layers, max_layers), 1):
        yield f"combined_batch_{number}", ladder(view, batch, "α by format")
    bars = Bars(view)
    for number, layer in enumerate(study.layers, 1):
        yield f"{_INDIVIDUAL}/layer_{number:03d}_{safe_name(layer.name.replace('.', '_'))}", bars.of(layer)


def batches(layers: Sequence[LayerStudy], most: int) -> list[Sequence[LayerStudy]]:
    """The layers in their order, at most so many together; 0 for all."""
    step = most or max(len(layers), 1)
    return [layers[start : start + step] for start in range(0, len(layers), step)]


def safe_name(name: str) -> str:
    """`name` for a file: other signs than A–Z, a–z, 0–9, `_`, `.`, `-` as `_`; a long one cut, with a hash."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if len(plain) <= _LONGEST:
        return plain
    return f"{plain[: _LONGEST - 9]}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _remove_stale(folder: Path, written: set[Path]) -> None:
    try:
        for place, pattern in ((folder, _OWN), (folder / _INDIVIDUAL, _OWN_LAYER)):
            for path in place.iterdir() if place.is_dir() else ():
                if pattern.fullmatch(path.name) and path not in written and path.is_file():
                    path.unlink()
    except OSError as error:
        raise could_not_write(error, folder) from error
