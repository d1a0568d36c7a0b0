"""`python -m tailwise.app.reading FILE`: read an audit within bounds, and say whether it can be used."""

from __future__ import annotations

import json
import os
import sys

from tailwise.errors import TailwiseError


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
        from tailwise.audits.audit import Audit
        from tailwise.diagnosis.run import diagnose

        diagnose(Audit.load(sys.argv[1]))
    except TailwiseError as error:
        return _refuse(error.what)
    except Exception as error:  # whatever a hostile file may provoke
        return _refuse(f"{type(error).__name__}: {error}")
    return 0


def _refuse(why: str) -> int:
    print(json.dumps({"error": why}))
    return 1


if __name__ == "__main__":
    sys.exit(main())
