"""The text of a plan to its document, in JSON or YAML: what one reader would pass over in silence is an error."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tailwise.core.errors import UsageError
from tailwise.core.yaml_text import NotYamlError, TwiceError, yaml_of


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
    """The same of YAML."""
    try:
        return yaml_of(text, twins=False)
    except TwiceError as error:
        raise UsageError(str(error), where=f"{where}, {error.place}", fix="keep one of the two") from error
    except NotYamlError as error:
        place = f"{where}, {error.place}" if error.place else where
        raise UsageError(f"is no YAML: {error}", where=place) from error
