"""Packages that only some commands need, imported to know whether they are there: one may lack what it needs itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


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
    """The line that installs an extra: from where this package came, be it a checkout or an index.

    >>> how_to_get("frames").startswith("pip install")
    True
    """
    root = _checkout()
    return f'pip install "tailwise[{extra}]"' if root is None else f'pip install -e "{root}[{extra}]"'


def _checkout() -> str | None:
    """The folder that this package runs from, where that is a checkout; "." from within it."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file() or not (root / "src" / "tailwise").is_dir():
        return None
    return "." if Path.cwd() == root else str(root)
