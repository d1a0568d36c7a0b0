"""YAML of strangers: plain values alone, and no more work than its length explains."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from tailwise.core.errors import MALFORMED, UsageError

#: Values that aliases may stand for.
_MOST_VALUES = 1 << 23
#: Characters of a number that YAML counts in sixties, such as 1:30: its time grows as their square.
_LONGEST_NUMBER = 400
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class NotYamlError(ValueError):
    """What is wrong with a text, and where in it: "line 3, column 5", or nothing where that is not known."""

    def __init__(self, what: str, place: str = "") -> None:
        self.place = place
        super().__init__(what)


class TwiceError(NotYamlError):
    """A mapping has a key twice."""


def yaml_of(text: str, *, twins: bool = True) -> Any:
    """The document of a YAML text. Raises `NotYamlError`, and `UsageError` where PyYAML is not installed.

    Without `twins` a key that is there twice is an error: YAML readers keep the last one without a word. What aliases
    stand for is bounded; a tag that its value does not fit is an error as any other.
    """
    yaml = yaml_package()
    try:
        loader = _reader()(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, yaml, twins, set())
        _extent(root, yaml, {})
        return loader.construct_document(root)
    except NotYamlError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else _place(mark)
        raise NotYamlError(str(getattr(error, "problem", None) or error), place) from error
    except MALFORMED as error:
        # The constructors of tags take it that a value was found by its look, and a tag may be written to any.
        raise NotYamlError(f"a value does not fit its tag ({type(error).__name__}: {str(error)[:200]})") from error


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _check(node: Any, yaml: Any, twins: bool, seen_nodes: set[int]) -> None:
    if id(node) in seen_nodes:  # an alias: it may stand in many places, or within itself
        return
    seen_nodes.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and ":" in node.value and len(node.value) > _LONGEST_NUMBER:
            raise NotYamlError(f"a number of {len(node.value)} characters in base 60", _place(node.start_mark))
        return
    seen: set[str] = set()
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if key is not None:
            name = str(key.value)
            if name in seen and not twins:
                raise TwiceError(f"{name!r} is there twice", f"line {key.start_mark.line + 1}")
            seen.add(name)
            _check(key, yaml, twins, seen_nodes)
        _check(value, yaml, twins, seen_nodes)


def _extent(node: Any, yaml: Any, sizes: dict[int, int]) -> int:
    """How many values a node stands for; aliases of aliases double at each level. `NotYamlError` for too many."""
    known = sizes.get(id(node))
    if known == 0:
        raise NotYamlError("an alias stands within itself", _place(node.start_mark))
    if known is not None:
        return known
    sizes[id(node)] = 0
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    sizes[id(node)] = size = 1 + sum(_extent(child, yaml, sizes) for child in children)
    if size > _MOST_VALUES:
        raise NotYamlError(f"its aliases stand for more than {_MOST_VALUES} values")
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
        raise UsageError("YAML takes PyYAML, which is not installed", fix="pip install pyyaml, or use JSON") from error
