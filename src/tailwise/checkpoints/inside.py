"""Names that a file gives of other files: they must stay in its folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from tailwise.checkpoints.bytesource import Folder, LocalFolder
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


def names_within(location: str) -> bool:
    """Whether a name, by its text, stays inside the folder that it is looked up in."""
    path = PurePosixPath(location)
    return not (not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location)


def stays_within(root: Path, path: Path) -> bool:
    """Whether what stands at `path` lies in a folder when links are followed."""
    home, target = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    if target.is_relative_to(home):
        return True
    # The Hub's cache keeps files as links from snapshots/COMMIT to blobs/ of the same model.
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    return snapshots is not None and target.is_relative_to(snapshots.parent / "blobs")
