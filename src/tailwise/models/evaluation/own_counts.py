"""How many layers, labels and other parts a model's config asks for, gone through before anything is built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.optional import needed
from tailwise.models.evaluation.own_documents import items_of

#: Of layers, and of all else that is built or gone through once for each: far above any model's, far below what takes
#: hours. What is made of them all is bounded by `building_of`.
_MOST_LAYERS, _MOST = 10_000, 1 << 20
_LAYERS = re.compile(r"(layers?|blocks?|depths?|stages)$")
_EVERYWHERE = re.compile(r"num_labels|.*experts")
_ADDED_UP = re.compile(r"(.*_)?depths?|num_.*(layers|blocks)")
#: Numbers that count nothing that is built: places in a text or a vocabulary, parts of signals and pictures, values.
_LARGE = re.compile(
    r"(.*_)?(theta|base|freq|frequency|position|length|len|seq|seqlen|context|ctx|window|chunk|chunksize|vocab|token|id|"
    r"index|indices|offset|pixel|seed|period|timescale|temperature|rate|sample|duration|hash|bucket|cardinality|limit|"
    r"value|val|floor|scale|factor|step)s?(_.*)?"
)


def check_counts(document: Any, where: str) -> None:
    """`UnreadableError` where a config asks for absurdly many parts or labels.

    What no part of transformers reads, such as how many tokens a model was trained on, may be any number.
    """
    known = _known_names(document)
    for key, value in _numbers(document):
        layers = _LAYERS.search(key) is not None
        read = isinstance(value, int) and key in known and not _LARGE.fullmatch(key)
        if not (layers or read or _EVERYWHERE.fullmatch(key)):
            continue
        most = _MOST_LAYERS if layers else _MOST
        if value > most:
            said = f"{value:.4g}" if value < 1 << 999 else "a number without end"
            raise UnreadableError(
                f"its config asks for {key} {said}, and no model has more than {most}",
                where=where,
                fix="take config.json from where the model came from",
            )


def _numbers(document: Any) -> Iterator[tuple[str, int | float]]:
    """Every number by its name, and the sums of those that are given for each stage."""
    for key, value in items_of(document):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
        elif isinstance(value, list) and _ADDED_UP.fullmatch(key):
            yield key, sum(item for item in value if isinstance(item, int | float))


def _known_names(document: Any) -> frozenset[str]:
    """The settings that configs of transformers have, of all types that a document names."""
    transformers = needed("transformers", "eval", "reading a model's config")

    known: Any = transformers.CONFIG_MAPPING
    types = {value for key, value in items_of(document) if key == "model_type" and isinstance(value, str)}
    waiting, kinds = [known[name] for name in types if name in known], set[type]()
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and kind not in kinds:
            kinds.add(kind)
            waiting += dict(getattr(kind, "sub_configs", None) or {}).values()
    return frozenset(name for kind in kinds for name in _settings_of(kind))


def _settings_of(kind: Any) -> Iterator[str]:
    yield from inspect.signature(kind.__init__).parameters
    yield from getattr(kind, "attribute_map", None) or ()
