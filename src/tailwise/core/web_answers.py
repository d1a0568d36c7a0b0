"""Answers of web servers, of which no more is read than was asked for."""

from __future__ import annotations

import re
import time

import aiohttp

from tailwise.core.errors import UnreadableError

#: Bytes of a file that is read whole (a plan, an audit), and of a page that lists a folder.
_MOST, _MOST_PAGE = 1 << 30, 16 << 20
#: Seconds after which an answer must have come at this pace, in bytes a second: one that drips has no end.
_PATIENCE, _SLOWEST = 30.0, 1000.0
_DOWNLOAD = "download it and open the copy"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class BoundedAnswer(aiohttp.ClientResponse):
    """Reads as far as the range that was asked for goes; a server may send on without end."""

    async def read(self) -> bytes:
        """The body. Raises `UnreadableError` where there is more of it than there may be."""
        if self._body is None:
            most, body = self._most(), bytearray()
            began = time.monotonic()
            async for part in self.content.iter_chunked(1 << 20):
                body += part
                took = time.monotonic() - began
                if took > _PATIENCE and len(body) < _SLOWEST * took:
                    self.close()
                    raise UnreadableError(
                        f"its server sent {len(body)} bytes in {took:.0f} s", where=str(self.url)[:200], fix=_DOWNLOAD
                    )
                if len(body) > most:
                    self.close()
                    raise self._too_much(most, len(body))
            self._body = bytes(body)
        return await super().read()

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
