"""Names in help texts, read from the registries when help is printed: what others have registered is among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from tailwise.compression.operators.operator import Does


class ListingCommand(TyperCommand):
    """A command whose help is `listed`: `app.command(cls=ListingCommand)`."""

    def format_help(self, *given: Any) -> None:
        """Load the registries that the texts name, and print."""
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text:
                parameter.help = listed(text)  # type: ignore[attr-defined]
        super().format_help(*given)


def listed(text: str) -> str:
    """A text of help with names in place of `{allocators}` and its like."""
    return re.sub(r"\{(\w+)\}", lambda found: _LISTS[found[1]](), text)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)


def _allocators() -> str:
    from tailwise.compression.choosing.amounts import ALLOCATORS

    return _joined(ALLOCATORS)


def with_tau() -> list[str]:
    """The allocators that `plan tau` can vary: they take τ, and nothing that no option of that command gives."""
    from tailwise.compression.choosing.amounts import ALLOCATORS

    return [name for name, item in ALLOCATORS.items() if {"tau"} <= {*item.takes} <= {"tau", "mapping", "reverse"}]


def _assigners() -> str:
    from tailwise.compression.choosing.bit_formats import ASSIGNERS

    return _joined(ASSIGNERS)


def _pruners() -> str:
    from tailwise.compression.operators.registered import operators_that

    return _joined(operators_that("prune"))


def _maskers() -> str:
    """Those that leave every tensor its shape."""
    from tailwise.compression.operators.registered import operators_that

    return _joined(name for name, item in operators_that("prune").items() if item.same_shape)


def _quantizers() -> str:
    from tailwise.compression.operators.registered import operators_that

    return _joined(operators_that("quantize"))


def _on_text(*kinds: Does) -> str:
    """Operators that look at inputs."""
    from tailwise.compression.operators.registered import operators_that

    return _joined(name for does in kinds for name, item in operators_that(does).items() if item.needs != "none")


def _formats() -> str:
    from tailwise.number_formats.formats import FORMATS

    return _joined(FORMATS)


def _exporters() -> str:
    from tailwise.compression.export.exporter import EXPORTERS

    return _joined(EXPORTERS)


def _export_suffixes() -> str:
    """`x.yaml for …, x.txt for …, x.json otherwise`."""
    from tailwise.compression.export.exporter import EXPORTERS

    tools: dict[str, list[str]] = {}
    for name, item in EXPORTERS.items():
        tools.setdefault(item.suffixes[0], []).append(name)
    usual = max(tools, key=lambda suffix: len(tools[suffix]))
    others = [f"x{suffix} for {' and '.join(names)}" for suffix, names in tools.items() if suffix != usual]
    return _joined([*others, f"x{usual} otherwise"])


_LISTS: Mapping[str, Callable[[], str]] = {
    "allocators": _allocators,
    "allocators_with_tau": lambda: _joined(with_tau()),
    "assigners": _assigners,
    "pruners": _pruners,
    "maskers": _maskers,
    "quantizers": _quantizers,
    "on_text": lambda: _on_text("prune", "quantize"),
    "pruners_on_text": lambda: _on_text("prune"),
    "quantizers_on_text": lambda: _on_text("quantize"),
    "formats": _formats,
    "exporters": _exporters,
    "export_suffixes": _export_suffixes,
}
