"""Packages that only some commands need, imported to know whether they are there: one may lack what it needs itself."""

from __future__ import annotations

from importlib import import_module


def missing(*packages: str) -> list[str]:
    """Those of `packages` that cannot be imported, with the package that they lack where it is another."""
    found = []
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            lacks = getattr(error, "name", None) or ""
            other = lacks.partition(".")[0] not in ("", package.partition(".")[0])
            found.append(f"{package} (which lacks {lacks})" if other else package)
    return found


def how_to_get(extra: str) -> str:
    """The line that installs an extra, from an index and from a checkout.

    >>> how_to_get("frames")
    'pip install "tailwise[frames]", or in a checkout pip install -e ".[frames]"'
    """
    return f'pip install "tailwise[{extra}]", or in a checkout pip install -e ".[{extra}]"'
