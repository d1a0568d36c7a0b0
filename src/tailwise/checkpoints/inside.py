"""Names that a file gives of other files: they must stay in its folder."""

from __future__ import annotations

from tailwise.checkpoints.bytesource import Folder, LocalFolder
from tailwise.checkpoints.within import names_within, stays_within
from tailwise.core.errors import UnreadableError


def inside(folder: Folder, location: str, *, where: str, what: str) -> str:
    """`location`, if it stays inside the folder: by its text, and after following links.

    `what` begins the message of the `UnreadableError` otherwise, as in "its external data".
    """
    if not names_within(location) or (
        isinstance(folder, LocalFolder) and not stays_within(folder.path, folder.path / location)
    ):
        raise UnreadableError(
            f"{what} lies outside the model's folder: {location[:200]!r}",
            where=where,
            fix="put all files of the model into one folder, and save it with relative names",
        )
    return location
