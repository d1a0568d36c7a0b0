"""Where alarms go: a log, or a web hook. Any function of an alarm is a sink too."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

from tailwise.core.errors import UsageError
from tailwise.history.point import Alarm, Severity

_LEVELS: dict[Severity, int] = {"note": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_COLOURS: dict[Severity, str] = {"note": "#6b7280", "warning": "warning", "error": "danger"}
_LOG = logging.getLogger("tailwise.alarms")


class Log:
    """Writes each alarm to a logger, at the level of its severity."""

    def __init__(self, logger: logging.Logger | str = "tailwise.alarms") -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger

    def __call__(self, alarm: Alarm) -> None:
        """Write one."""
        self._logger.log(_LEVELS[alarm.severity], "%s", in_words(alarm))


class Webhook:
    """Posts each alarm as JSON, from a thread of its own, so that training neither waits nor fails.

    The body is what Slack and Mattermost take (`text` and `attachments`), or `Alarm.to_json()` with `plain`. What
    cannot be posted within `timeout` seconds is logged without the address, which is often a secret, and dropped; so
    are alarms beyond `waiting` that have not been posted yet. `close()` waits for what is left.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, plain: bool = False, waiting: int = 100) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UsageError("the web hook is not an http or https address", fix="give its whole URL")
        self.posted = self.failed = 0
        self._url, self._timeout, self._plain = url, timeout, plain
        self._queue: queue.Queue[Alarm | None] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None

    def __call__(self, alarm: Alarm) -> None:
        """Hand one over to the thread; never blocks and never raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tailwise-webhook", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(alarm)
        except queue.Full:
            self._lost("too many are waiting")

    def close(self, timeout: float = 10.0) -> None:
        """Post what is waiting, for so many seconds at most, and end the thread."""
        if self._thread is None:
            return
        until = time.monotonic() + timeout
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if not self._thread.is_alive():
            self._thread = None

    def _work(self) -> None:
        while (alarm := self._queue.get()) is not None:
            try:
                self._post(alarm)
                self.posted += 1
            except Exception as error:  # whatever it is, it must not end the thread
                self._lost(type(error).__name__)

    def _post(self, alarm: Alarm) -> None:
        body = json.dumps(alarm.to_json() if self._plain else for_slack(alarm)).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "tailwise"}
        request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310 - http(s), see above
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310
            answer.read()

    def _lost(self, why: str) -> None:
        self.failed += 1
        _LOG.warning("an alarm could not be posted (%s); %d so far", why, self.failed)


def in_words(alarm: Alarm) -> str:
    """One line."""
    since = f", since step {alarm.since}" if alarm.since is not None and alarm.since != alarm.step else ""
    return f"{alarm.rule} {alarm.severity} in {alarm.run} at step {alarm.step}{since}: {alarm.title}"


def for_slack(alarm: Alarm) -> dict[str, Any]:
    """The body of a message to an incoming web hook of Slack."""
    lines = [f"{name}: {value:.4g}" for name, value in alarm.evidence.items()]
    lines += [f"remedy: tailwise.remedies.{name}" for name in alarm.remedies]
    text = in_words(alarm).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": text, "attachments": [{"color": _COLOURS[alarm.severity], "text": "\n".join(lines)}]}
