"""Regular expressions among the settings of a model or an adapter, gone through before a library searches by them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.harmless import pattern_from_file, steps_of
from tailwise.models.evaluation.own_documents import items_of

#: Letters of the longest names of modules, and steps that all patterns together may take at worst with one of them,
#: which they do with no name that a model has.
_LETTERS, _MOST_STEPS = 100, 2 * 10**9
#: Each is compiled anew for each module where there are many.
_MOST_PATTERNS = 20_000
_LONGEST = 20_000  # names may be listed one after the other

#: Where a config says how its weights are quantized.
_QUANTIZATION = frozenset(("quantization_config", "compression_config"))
#: Lists in which a name is a pattern only where it says so.
_MARKED, _MARK = frozenset(("targets", "ignore")), re.compile(r"re:|[+-]:")
#: Texts to quantize by, which may be anything.
_TEXTS = frozenset(("dataset", "tokenizer"))
#: Patterns that transformers joins to one, in which half a group of one could be ended by another.
_JOINED = "module_quant_configs"
_SPECIAL = re.compile(r"[*+?{}()\[\]|\\]")


def check_quantization(document: Mapping[str, Any], where: str) -> None:
    """`UnreadableError` where a pattern of what a config says of quantized weights could run without end.

    Each library has settings of its own that are patterns of modules' names: any text in them is taken for one.
    """
    for key, settings in items_of(document):
        if key in _QUANTIZATION and isinstance(settings, Mapping):
            fix = "take config.json from where the model came from"
            check_patterns(_as_compiled(settings), f"its {key} has", where, fix)


def check_patterns(patterns: Iterable[str], whose: str, where: object, fix: str, within: str = "{}") -> None:
    """`UnreadableError` where one of them is no pattern, or could run without end, or all of them together could.

    `within` is the pattern that a library makes of each.
    """
    steps = count = 0
    try:
        for text in patterns:
            pattern_from_file(text, longest=_LONGEST)
            steps, count = steps + steps_of(within.format(text), _LETTERS), count + 1
            if steps > _MOST_STEPS or count > _MOST_PATTERNS:
                raise ValueError("patterns that may run without end")
    except ValueError as error:
        raise UnreadableError(f"{whose} {error}", where=where, fix=fix) from error


def _as_compiled(settings: Mapping[str, Any]) -> Iterator[str]:
    """Every text of what is said of quantized weights that may be a pattern, as a library would compile it."""
    for key, value in items_of(settings):
        named = [str(name) for name in value] if isinstance(value, Mapping) else []
        for text in [value] if isinstance(value, str) and key not in _TEXTS else named:
            marked = _MARK.match(text)
            if key == _JOINED and named:
                yield text
            elif marked or (key not in _MARKED and _SPECIAL.search(text)):
                yield from _compilable(text[marked.end() if marked else 0 :])


def _compilable(text: str) -> Iterator[str]:
    """A text, alone or in a group, where it is a pattern at all: globs and texts that are none harm nobody."""
    if len(text) > _LONGEST:
        yield text
        return
    for tried in (text, f"(?:{text})"):
        try:
            re.compile(tried)
        except re.error:
            continue
        except (RecursionError, OverflowError):
            pass
        yield tried
        return
