"""A checkpoint's own Python, which is never run: what transformers says where it cannot do without, as one error."""

from __future__ import annotations

from tailwise.core.errors import UnreadableError, UnsafeError

#: What can be done about it.
WAY_OUT = (
    "read that code first; if you trust it, load the model in Python yourself and give the module in place of its "
    "name. Audits and the operators magnitude and rtn need none of it"
)
_MARKS = ("trust_remote_code", "custom code")


def load_error(error: Exception, where: object, what: str = "could not be loaded", fix: str | None = None) -> (
    UnreadableError
):  # fmt: skip
    """`UnsafeError` where loading would have run code that came with the checkpoint, else `UnreadableError`.

    Every load is told `trust_remote_code=False`: left out, transformers asks on standard input, and "y" runs it.
    """
    if isinstance(error, UnreadableError):  # one of ours, which says it all
        return error
    message = str(error)
    if any(mark in message for mark in _MARKS):
        return needs_code(where)
    lines = message.strip().splitlines()
    return UnreadableError(f"{what} ({lines[0] if lines else type(error).__name__})", where=where, fix=fix)


def needs_code(where: object, what: str = "it cannot be loaded without Python code that came with it") -> UnsafeError:
    """The refusal."""
    return UnsafeError(f"{what}, and tailwise runs none", where=where, fix=WAY_OUT)
