"""Whether a name or a path stays in a folder: by its text, and when links are followed."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from tailwise.core.errors import UnreadableError


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


def check_within(root: Path, path: Path) -> None:
    """`UnreadableError` where a file of a model's settings is a link to what is not in its folder.

    What settings say goes into audits and copies. Weights that lie elsewhere are nobody's secret: shards are linked to
    other disks on purpose.
    """
    if not stays_within(root, path):
        raise UnreadableError(
            "is a link to a file outside the model's folder, and is not read", where=path,
            fix="if it is the model's own, put a copy of it into the folder",
        )  # fmt: skip
