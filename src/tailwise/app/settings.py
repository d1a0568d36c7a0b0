"""How the app is served."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from tailwise.core.errors import UsageError


def default_state() -> Path:
    """Where the app keeps tags, uploads and the queue: `$TAILWISE_STATE`, or the user's own folder for state."""
    given = os.environ.get("TAILWISE_STATE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "tailwise"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class AppSettings:
    """Address, secrets and limits of one server.

    Raises `UsageError` for an address beyond this machine without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8440
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()  # further host names under which it may be called, behind a proxy
    state: Path = field(default_factory=default_state)
    read_only: bool = False  # no audits, no uploads, no tags
    hub: bool = True  # whether audits of Hugging Face ids may be started
    workers: int | None = None  # matrices at once in an audit
    longest_queue: int = 20
    starts_per_minute: int = 12
    largest_upload: int = 250_000_000  # bytes
    most_kept: int = 10_000_000_000  # bytes of audits that came or were made here, beyond which no more are taken

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise UsageError(f"{self.host} can be reached from other machines, and no token was given",
                             fix="give --token, or stay on 127.0.0.1")  # fmt: skip
        if self.token is not None and len(self.token) < 16:
            raise UsageError("the token is too short to be safe", fix="give 16 characters or more")
