"""What a command line gives, told apart: folders and files, a store, an address."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tailwise.app.settings import AppSettings
from tailwise.core.errors import UsageError

_STORES = (".db", ".sqlite", ".sqlite3")


def split(given: Sequence[str], store: str | None) -> tuple[list[str], str | None]:
    """Roots and the store. A store may stand among the arguments; `UsageError` where there are two."""
    roots: list[str] = []
    stores = [store] if store else []
    for text in given:
        is_store = text.startswith(("postgresql://", "postgres://", "sqlite://")) or (
            Path(text).suffix.lower() in _STORES and not Path(text).is_dir()
        )
        (stores if is_store else roots).append(text)
    if len(stores) > 1:
        from tailwise.history.connect import shown

        raise UsageError("two histories were given", where=", ".join(map(shown, stores)), fix="give one")
    places = roots or (["."] if not stores else [])
    return places, stores[0] if stores else _history_in(places)


def _history_in(roots: Sequence[str]) -> str | None:
    """The history that lies in the folders, where there is one and no other."""
    from tailwise.app.workspace.scan import is_history

    stores = [path for root in roots if Path(root).is_dir() for suffix in _STORES
              for path in sorted(Path(root).glob(f"*{suffix}"))[:_MOST]
              if path.is_file() and not path.is_symlink() and is_history(path)]  # fmt: skip
    return str(stores[0].resolve()) if len(stores) == 1 else None


#: Files of one ending that are looked at.
_MOST = 50


def free_port(host: str, port: int) -> int:
    """The port, if nothing listens there; for 0, one that is free. `UsageError` otherwise."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen there: {error.strerror or error}", where=f"{host}:{port}",
                             fix="choose another --port; 0 takes any free one") from None  # fmt: skip
        return int(probe.getsockname()[1])


def place_of(settings: AppSettings) -> str:
    """The address to open."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - looked for, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/"
