"""Packages that only some commands need, imported to know whether they are there: one may lack what it needs itself."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tailwise.core.errors import UsageError


def missing(*packages: str) -> list[str]:
    """Those of `packages` that cannot be imported, with the package that they lack where it is another."""
    absent = []
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            lacks = getattr(error, "name", None) or ""
            other = lacks.partition(".")[0] not in ("", package.partition(".")[0])
            absent.append(f"{package} (which lacks {lacks})" if other else package)
    return absent


def needed(package: str, extra: str, what: str = "this") -> Any:
    """The package; where it or what it needs is absent, a `UsageError` with the line that installs the extra."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(f"{what} takes the package {package} ({error})", fix=how_to_get(extra)) from error


def how_to_get(extra: str) -> str:
    """The line that installs an extra, from an index and from a checkout.

    >>> how_to_get("frames")
    'pip install "tailwise[frames]", or in a checkout pip install -e ".[frames]"'
    """
    return f'pip install "tailwise[{extra}]", or in a checkout pip install -e ".[{extra}]"'
