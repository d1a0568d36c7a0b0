"""The text of a plan to its document, in JSON or YAML: what one reader would pass over in silence is an error."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tailwise.core.errors import UsageError

_MOST_VALUES = 1 << 23


def from_json(text: str, where: Path) -> Any:
    """The document of a JSON text. `UsageError` where it is none, or has a name twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            name = Counter(name for name, _ in items).most_common(1)[0][0]
            raise UsageError(f"{name!r} is there twice", where=where, fix="keep one of the two")
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"is no JSON: {error.msg}", where=f"{where}, line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise UsageError(f"is no plan in JSON ({error})", where=where) from error


def from_yaml(text: str, where: Path) -> Any:
    """The same of YAML; what aliases stand for is bounded."""
    yaml = yaml_package()
    try:
        loader = _reader()(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_twins(root, yaml, where, set())
        _extent(root, yaml, {})
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None else f"{where}, line {mark.line + 1}, column {mark.column + 1}"
        raise UsageError(f"is no YAML: {getattr(error, 'problem', None) or error}", where=place) from error
    except (ValueError, RecursionError) as error:  # as for JSON; an impossible date is a ValueError too
        raise UsageError(f"is no plan in YAML ({error})", where=where) from error


def _refuse_twins(node: Any, yaml: Any, where: Path, seen_nodes: set[int]) -> None:
    """YAML readers keep the last of two equal keys without a word."""
    if id(node) in seen_nodes:  # an alias: it may stand in many places, or within itself
        return
    seen_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise UsageError(f"{name!r} is there twice", where=f"{where}, line {line}", fix="keep one of the two")
            seen.add(name)
            _refuse_twins(value, yaml, where, seen_nodes)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item, yaml, where, seen_nodes)


def _extent(node: Any, yaml: Any, sizes: dict[int, int]) -> int:
    """How many values a node stands for; aliases of aliases double at each level. `ValueError` for too many."""
    known = sizes.get(id(node))
    if known == 0:
        raise ValueError("an alias stands within itself")
    if known is not None:
        return known
    sizes[id(node)] = 0
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    sizes[id(node)] = size = 1 + sum(_extent(child, yaml, sizes) for child in children)
    if size > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES} values")
    return size


@cache
def _reader() -> Any:
    """PyYAML's safe loader, on libyaml's parser where it has that, which is many times as fast.

    Nodes are put together in Python either way: C has no bound on how deep they are nested.
    """
    yaml = yaml_package()
    if not hasattr(yaml, "CSafeLoader"):
        return yaml.SafeLoader
    bases = (yaml.composer.Composer, yaml.cyaml.CParser, yaml.constructor.SafeConstructor, yaml.resolver.Resolver)

    def begin(self: Any, text: str) -> None:
        yaml.cyaml.CParser.__init__(self, text)
        for base in (bases[0], *bases[2:]):
            base.__init__(self)

    return type("Reader", bases, {"__init__": begin})


def yaml_package() -> Any:
    """PyYAML. `UsageError` where it is not installed."""
    try:
        return import_module("yaml")
    except ImportError as error:
        raise UsageError("plans in YAML need PyYAML", fix="pip install pyyaml, or use a .json file") from error
