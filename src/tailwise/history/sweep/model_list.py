"""Which models a sweep is about: a list in a file, or a query to the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tailwise.core.errors import UnreadableError, UsageError, unknown_name
from tailwise.core.storage import get, is_url, read_bytes

_log = logging.getLogger(__name__)
_QUERY = "hub:"
#: A sign within a word is part of it: folders and keys of object stores may have one.
_COMMENT = re.compile(r"(^|\s)#.*")
#: What a query may ask, and how its value is read. Tags of a filter are joined by `+`.
_FIELDS: dict[str, Callable[[str], Any]] = {
    "author": str, "search": str, "pipeline_tag": str, "num_parameters": str, "sort": str, "limit": int,
    "filter": lambda text: text.split("+"),
}  # fmt: skip
#: Without a limit, a query means every model of the Hub.
_MOST = 1000


def read_models(what: str) -> list[str]:
    """The models that `what` names, in order, each once.

    `what` is a file (or URL) with a model on each line, where `#` after a space begins a comment, or a query such as
    `hub:author=org,sort=downloads,limit=100`.
    """
    if what.startswith(_QUERY):
        listed = list(_from_hub(what))
    else:
        lines = (_COMMENT.sub("", line).strip() for line in _text(what).split("\n"))
        listed = [_identity(line) for line in lines if line]
    models = list(dict.fromkeys(listed))
    if not models:
        raise UsageError("names no model", where=what, fix="write one model on each line: a path, a URL, or org/name")
    if len(models) < len(listed):
        twice = len(listed) - len(models)
        words = "1 model is named twice and audited" if twice == 1 else f"{twice} models are named twice and audited"
        _log.warning("%s: %s once", what, words)
    return models


def _identity(model: str) -> str:
    """One name of one model: `x/` is `x`."""
    return model.rstrip("/") or model


def default_name(what: str) -> str:
    """What a sweep is called where nobody says."""
    return what if what.startswith(_QUERY) else Path(what).stem or "sweep"


def _text(what: str) -> str:
    fix = "give a text file with a model on each line, or hub:author=…,limit=…"
    path = Path(what).expanduser()
    if not is_url(what) and path.is_dir():
        raise UsageError("is a folder, and a list of models was expected", where=what, fix=fix)
    try:
        return (get(what) if is_url(what) else read_bytes(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("is no text file", where=what, fix=fix) from error
    except OSError as error:
        raise UnreadableError((error.strerror or str(error)).lower(), where=what, fix=fix) from error


def _from_hub(query: str) -> Iterator[str]:
    from huggingface_hub import HfApi

    from tailwise.checkpoints.hub import HubAddress, hub_errors

    asked = parse_query(query)
    try:
        with hub_errors(HubAddress(query, None)):
            for info in HfApi().list_models(**asked):
                yield info.id
    except UnreadableError as error:
        fix = "a query asks the Hub itself: go online, or give a file with a model on each line"
        raise type(error)(f"the Hub could not be asked ({error.what})", where=query, fix=fix) from error


def parse_query(query: str) -> dict[str, Any]:
    """`hub:author=org,limit=5` → what the Hub's client is asked for."""
    asked: dict[str, Any] = {}
    for part in query.removeprefix(_QUERY).split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in _FIELDS:
            raise unknown_name("field of a query", name, _FIELDS)
        try:
            asked[name] = _FIELDS[name](value)
        except ValueError:
            equals = ""
        if not equals or not value:
            example = "hub:author=org,sort=downloads,limit=100"
            raise UsageError(f"{part!r} is no field with its value", where=query, fix=f"write it as {example}")
    if asked.keys() <= {"sort", "limit"} and "limit" not in asked:
        asked["limit"] = _MOST
        _log.warning("%s would list the whole Hub: the first %d models are taken; give a limit", query, _MOST)
    return asked
