"""Which endpoint the assistant talks to. The key stays on this machine: no client and no log gets it."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of

URL, MODEL, KEY = "TAILWISE_ASSISTANT_URL", "TAILWISE_ASSISTANT_MODEL", "TAILWISE_ASSISTANT_KEY"
FILE = "TAILWISE_ASSISTANT_FILE"
_SUGGESTION = "such as http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the model to ask there."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0  # seconds without a sign of life
    tools: bool = True  # False for servers that refuse tool calls

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if not self.model.strip():
            raise UsageError("the endpoint has no model", fix=f"give --model, or set {MODEL}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError("the key has signs that no key has", fix="copy it again, without line breaks")

    @staticmethod
    def from_environment(
        *, base_url: str | None = None, model: str | None = None, api_key_env: str | None = None
    ) -> Endpoint | None:
        """From what is given, else environment variables, else the settings file; None where none names a server.

        A key that belongs to one server is not sent to another: the settings file's key goes only to its own.
        """
        stored = load()
        url = base_url or os.environ.get(URL) or (stored.base_url if stored else None)
        if not url:
            return None
        own = stored if stored is not None and _same_server(stored.base_url, url) else None
        name = model or os.environ.get(MODEL) or (own.model if own else "")
        # The key of the environment is for the server of the environment, where it names one.
        meant = os.environ.get(URL)
        mine = api_key_env is not None or not meant or _same_server(meant, url)
        key = (_key_from(api_key_env) if mine else None) or (own.api_key if own else None)
        return Endpoint(url, name, key)

    @property
    def local(self) -> bool:
        """Whether the server is on this machine: nothing leaves it then."""
        return _is_local(self.base_url)

    def to_client(self) -> dict[str, Any]:
        """What a page may show."""
        return {"base_url": self.base_url, "model": self.model, "has_key": self.api_key is not None,
                "local": self.local, "tools": self.tools}  # fmt: skip

    def changed(self, *, base_url: str | None = None, model: str | None = None, api_key: str | None = None) -> Endpoint:
        """With other settings. A key stays only where the server stays, so that it cannot be sent elsewhere."""
        url = base_url or self.base_url
        same_key = self.api_key if _same_server(self.base_url, url) else None
        return Endpoint(url, model or self.model, api_key or same_key, self.timeout, self.tools)

    def save(self, path: Path | None = None) -> Path:
        """Keep it in a file that only its owner can read."""
        target = path or settings_file()
        target.parent.mkdir(parents=True, exist_ok=True)
        document = {"base_url": self.base_url, "model": self.model, "api_key": self.api_key, "tools": self.tools}
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
        draft.replace(target)
        return target


def settings_file() -> Path:
    """Where settings are kept: $TAILWISE_ASSISTANT_FILE, or in the folder for settings."""
    given = os.environ.get(FILE)
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "tailwise" / "assistant.json"


def load(path: Path | None = None) -> Endpoint | None:
    """The settings that were kept, or None. `UnreadableError` for a damaged file, or one that others can read."""
    source = path or settings_file()
    try:
        text, mode = source.read_text(encoding="utf-8"), source.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"the assistant's settings cannot be read: {error}", where=source) from error
    try:
        data = json_of(text)
        key, endpoint = data.get("api_key"), Endpoint(data["base_url"], data["model"], tools=data.get("tools", True))
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise UnreadableError("the assistant's settings are damaged", where=source, fix="remove the file") from error
    if key and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UnreadableError("others can read the key in this file", where=source, fix=f"chmod 600 {source}")
    return endpoint.changed(api_key=key)


def forget(path: Path | None = None) -> None:
    """Remove the settings that were kept."""
    (path or settings_file()).unlink(missing_ok=True)


def _key_from(name: str | None) -> str | None:
    if name is None:
        return os.environ.get(KEY) or None
    if not os.environ.get(name):
        raise UsageError(f"the environment has no {name}", where="--api-key-env", fix="set it, or leave the option out")
    return os.environ[name]


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{url!r} is not the address of a server", fix=f"give an http(s) address {_SUGGESTION}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("the address of a server holds no user, password or query", fix=f"give one {_SUGGESTION}")


def _same_server(one: str, other: str) -> bool:
    ours, theirs = urlsplit(one), urlsplit(other)
    return (ours.scheme, ours.hostname, ours.port) == (theirs.scheme, theirs.hostname, theirs.port)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
