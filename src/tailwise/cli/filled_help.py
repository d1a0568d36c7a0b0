"""Help as it is shown: names of operators and allocators from their registries, and lines that the terminal breaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from tailwise.cli.renamed import named_now

_NAMED = re.compile(r"\{(\w+)\}")


class Told(TyperCommand):
    """A command whose help is finished when it is asked for: registries import what a command line need not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; options by their old names are taken too."""
        return super().parse_args(ctx, named_now(args, {flag for one in self.params for flag in one.opts}))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See click."""
        self.help = unwrapped(self.help or "")
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            if text:
                parameter.help = filled(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def tell(app: typer.Typer) -> None:
    """Have every command of `app`, those of its groups too, finish its help."""
    for info in app.registered_commands:
        info.cls = Told
    for group in app.registered_groups:
        if group.typer_instance is not None:
            tell(group.typer_instance)


def unwrapped(text: str) -> str:
    """Paragraphs as one line each; lists and examples stay, whose lines are indented or begin with a dash."""
    return "\n\n".join(
        part if re.search(r"^(?:\s|- |\* |\d+\. )", part, re.MULTILINE) else " ".join(part.split())
        for part in text.split("\n\n")
    )


def filled(text: str) -> str:
    """`{pruners}` and its like as the names of today, those of third parties too."""
    return _NAMED.sub(lambda found: _LISTS[found[1]]() if found[1] in _LISTS else found[0], text)


def _operators(does: str, **fields: object) -> str:
    """Operators of plans of one kind, of which each of `fields` is so."""
    from tailwise.compression.operators.registered import operators_that

    known = operators_that(does)  # type: ignore[arg-type]
    return _listed(name for name, item in known.items() if all(getattr(item, key) == to for key, to in fields.items()))


def _allocators(takes: str = "") -> str:
    from tailwise.compression.choosing.amounts import ALLOCATORS

    return _listed(name for name, item in ALLOCATORS.items() if not takes or takes in item.takes)


def _with_tau() -> str:
    from tailwise.compression.choosing.amounts import with_tau

    return _listed(with_tau())


def _assigners(takes: str = "") -> str:
    from tailwise.compression.choosing.bit_formats import ASSIGNERS

    return _listed(name for name, item in ASSIGNERS.items() if not takes or takes in item.takes)


def _streaming() -> str:
    from tailwise.compression.operators.registered import OPERATORS

    return _listed(name for name, item in OPERATORS.items() if item.planned and not item.looks and item.work)


def _with_text() -> str:
    from tailwise.compression.operators.registered import OPERATORS

    return _listed(name for name, item in OPERATORS.items() if item.with_text)


def _formats() -> str:
    from tailwise.number_formats.formats import format_names

    return _listed(format_names())


def _exporters() -> str:
    from tailwise.compression.export.exporter import EXPORTERS

    return _listed(EXPORTERS)


def _export_suffixes() -> str:
    """`x.yaml for …, x.txt for …, x.json otherwise`."""
    from tailwise.compression.export.exporter import EXPORTERS

    tools: dict[str, list[str]] = {}
    for name, item in EXPORTERS.items():
        tools.setdefault(item.suffixes[0], []).append(name)
    usual = max(tools, key=lambda suffix: len(tools[suffix]))
    others = [f"x{suffix} for {' and '.join(names)}" for suffix, names in tools.items() if suffix != usual]
    return _listed([*others, f"x{usual} otherwise"])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


_LISTS: Mapping[str, Callable[[], str]] = {
    "pruners": lambda: _operators("prune"),
    "quantizers": lambda: _operators("quantize"),
    "looking_pruners": lambda: _operators("prune", looks=True),
    "looking_quantizers": lambda: _operators("quantize", looks=True),
    "blind_quantizers": lambda: _operators("quantize", looks=False),
    "shape_keeping_pruners": lambda: _operators("prune", same_shape=True),
    "ranking_pruners": lambda: _operators("prune", ranks=True),
    "whole_pruners": lambda: _operators("prune", work=None),
    "streaming_operators": _streaming,
    "operators_with_text": _with_text,
    "allocators": _allocators,
    "allocators_with_tau": _with_tau,
    "allocators_with_mapping": lambda: _allocators("mapping"),
    "allocators_with_reverse": lambda: _allocators("reverse"),
    "assigners": _assigners,
    "assigners_with_tau": lambda: _assigners("tau"),
    "formats": _formats,
    "exporters": _exporters,
    "export_suffixes": _export_suffixes,
}
