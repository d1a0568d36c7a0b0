"""Packages that only some commands need, imported to know whether they are there: one may lack what it needs itself."""

from __future__ import annotations

from importlib import import_module


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
