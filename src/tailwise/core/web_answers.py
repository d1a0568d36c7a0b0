"""Answers of web servers, of which no more is read than was asked for."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    from aiohttp.connector import Connection

#: Bytes of a file that is read whole (a plan, an audit), and of a page that lists a folder.
_MOST, _MOST_PAGE = 1 << 30, 16 << 20
#: Seconds in which a head must have come, and of a body this many bytes for each: one that drips has no end.
_PATIENCE, _SLOWEST = 30.0, 1000.0
_DOWNLOAD = "download it and open the copy"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
T = TypeVar("T")


class BoundedAnswer(aiohttp.ClientResponse):
    """Reads as far as the range that was asked for goes, and waits no longer than a server gets on that means well.

    What counts is what was unpacked: interim answers, heads of chunks, trailers and empty blocks can go on for ever.
    """

    async def start(self, connection: Connection) -> BoundedAnswer:
        """Read the head. Raises `UnreadableError` where it does not end."""
        await self._within(super().start(connection), "sent no whole head of an answer")
        return self

    async def read(self) -> bytes:
        """The body. Raises `UnreadableError` where there is more of it than there may be."""
        if self._body is None:
            most, body, marked = self._most(), bytearray(), 0
            ends = time.monotonic() + _PATIENCE
            while part := await self._within(self.content.read(1 << 20), f"sent {len(body) - marked} bytes", ends):
                body += part
                if len(body) - marked >= _SLOWEST * _PATIENCE:
                    marked, ends = len(body), time.monotonic() + _PATIENCE
                if len(body) > most:
                    self.close()
                    raise self._too_much(most, len(body))
            self._body = bytes(body)
        return await super().read()

    async def _within(self, waited: Coroutine[Any, Any, T], came: str, ends: float | None = None) -> T:
        """What is waited for, until `ends`."""
        left = _PATIENCE if ends is None else max(0.0, ends - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await waited
        except TimeoutError as error:
            self.close()
            raise UnreadableError(
                f"its server {came} in {_PATIENCE:g} s", where=str(self.url)[:200], fix=_DOWNLOAD
            ) from error

    def _too_much(self, most: int, came: int) -> UnreadableError:
        where, fix = str(self.url)[:200], _DOWNLOAD
        if "Range" not in self.request_info.headers:
            return UnreadableError(f"its server sends more than the {most} bytes that are taken", where=where, fix=fix)
        said = f"{most} bytes were asked for and {came} came already"
        return UnreadableError(said, where=where, fix=f"its server ignores byte ranges, or the file changed: {fix}")

    def _most(self) -> int:
        asked = _RANGE.fullmatch(self.request_info.headers.get("Range", ""))
        if asked is not None:
            return int(asked[2]) - int(asked[1]) + 1
        return _MOST_PAGE if self.content_type == "text/html" else _MOST
