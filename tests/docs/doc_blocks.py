"""The blocks of code on a page: what kind each is, whether it is run, and what it is said to print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: The reason; the commands of the README that CI runs as they stand (`.ci/run`) are marked for it.
_NOT_RUN = re.compile(r"<!-- (?:not run: (.+)|((?:audit|test) command)) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int  # of the fence
    kind: str  # bash, python, text, …
    body: str
    not_run: str | None  # the reason, from the comment above the fence
    printed: str | None  # the text block that follows a run one with nothing between: its output


def blocks_of(path: Path, root: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[tuple[int, str, str, str | None]] = []
    above, opened, body = "", None, []
    ends: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"(\s*)```(.*)", line)
        if opened is None and fence:
            match = _NOT_RUN.fullmatch(above.strip())
            reason = match and (match[1] or match[2])
            opened, body = (number, fence[2].split(" ")[0], reason, fence[1]), []
        elif opened is not None and fence and not fence[2]:
            found.append((opened[0], opened[1], "\n".join(body), opened[2]))
            ends.append(number)
            opened, above = None, ""
        elif opened is not None:
            body.append(line.removeprefix(opened[3]))
        elif line.strip():
            above = line
    page = str(path.relative_to(root))
    made = []
    for place, (line, kind, text, reason) in enumerate(found):
        after = found[place + 1] if place + 1 < len(found) else None
        printed = after[2] if after and after[1] == "text" and kind in ("bash", "python") and (
            after[0] - ends[place] <= 2) else None  # fmt: skip
        made.append(Block(page, line, kind, text, reason, printed))
    return made


def commands_in(body: str) -> list[str]:
    """The lines of a shell block, continued lines joined, without comments and empty lines."""
    joined = re.sub(r"\\\n\s*", " ", body)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]
