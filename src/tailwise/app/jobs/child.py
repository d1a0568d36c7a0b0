"""`python -m tailwise.app.jobs.child audit …`: the command line, which ends with the server that started it.

Its standard input is a pipe that nothing is written to. It closes when the server is gone, however that came about.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading


def _end_with_the_server() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock this would hold when the interpreter ends
        pass
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # the workers, too: the group is its own
    os._exit(1)


def main() -> None:
    """Watch, and run the command line."""
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    runpy.run_module("tailwise", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
