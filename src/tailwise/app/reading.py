"""`python -m tailwise.app.reading FILE BYTES`: read an audit within bounds, and say whether it can be used."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

from tailwise.core.errors import TailwiseError


def main() -> int:
    """Zero where the audit can be read and judged."""
    try:
        import resource

        most = int(os.environ.get("TAILWISE_MEMORY", str(4 << 30)))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    except (ImportError, ValueError, OSError):
        pass  # the time-out of the caller still holds
    try:
        _use(Path(sys.argv[1]), int(sys.argv[2]))
    except TailwiseError as error:
        return _refuse(error.what)
    except Exception as error:  # whatever a hostile file may provoke
        return _refuse(f"{type(error).__name__}: {error}")
    return 0


def _use(path: Path, most: int) -> None:
    """All that the pages do with an audit, so that none of them is the first to stumble."""
    from tailwise.app.workspace.layers import records
    from tailwise.audits.audit import Audit
    from tailwise.judging.diagnosis.diagnose import diagnose
    from tailwise.report.output_files import to_json

    _look_at_members(path, most)
    audit = Audit.load(path)
    to_json(audit).encode()
    diagnosis = diagnose(audit)
    json.dumps([records(audit, diagnosis), diagnosis.to_json()], ensure_ascii=False, allow_nan=False).encode()


def _look_at_members(path: Path, most: int) -> None:
    from tailwise.audits.codec import MEMBERS

    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(item.compress_type == zipfile.ZIP_STORED and item.file_size == item.compress_size for item in members)
    within = sum(item.file_size for item in members) <= most
    if sorted(item.filename for item in members) != sorted(MEMBERS) or not stored or not within:
        raise ValueError("it holds other parts than an audit does")


def _refuse(why: str) -> int:
    print(json.dumps({"error": why}))
    return 1


if __name__ == "__main__":
    sys.exit(main())
