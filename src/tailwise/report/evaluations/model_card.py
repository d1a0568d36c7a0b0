"""The measured quality in a model card: a part of README.md that is written anew each time."""

from __future__ import annotations

import os
from pathlib import Path

from tailwise.core.atomic import write_whole
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import read_text
from tailwise.models.evaluation.scores import ScoreComparison, Scores
from tailwise.report.evaluations.evaluation_tables import markdown

CARD = "README.md"
_BEGIN, _END = "<!-- tailwise evaluation -->", "<!-- end of tailwise evaluation -->"


def check_card(model: str | os.PathLike[str]) -> Path:
    """Where the card of a model is. `UsageError` where it is no folder on disk."""
    place = Path(model).expanduser()
    if not place.is_dir():
        raise UsageError("a model card is written into a folder, and this is none", where=os.fspath(model),
                         fix="leave --card out; -o x.md writes the same by itself")  # fmt: skip
    return place / CARD


def write_card(found: Scores | ScoreComparison, model: str | os.PathLike[str]) -> Path | str:
    """Put the evaluation into the card of a model's folder; what it had said before of an evaluation is replaced."""
    path = check_card(model)
    try:
        text = read_text(path) if path.exists() else ""
    except (OSError, ValueError) as error:
        raise UnreadableError(f"could not be read ({error})", where=path) from error
    return write_whole(path, with_part(text, markdown(found)).encode())


def with_part(card: str, part: str) -> str:
    """A card with a part between marks, in the place of the one that it has, or at its end."""
    block = f"{_BEGIN}\n{part}{_END}\n"
    before, begun, rest = card.partition(_BEGIN + "\n")
    _, ended, after = rest.partition(_END + "\n")
    if begun and ended:
        return before + block + after
    gap = "" if not card else "\n" if card.endswith("\n") else "\n\n"
    return card + gap + block
