"""Lines of other libraries that look like failures and are none: kept off the screen, each by its own words."""

from __future__ import annotations

import logging

#: Logger → how its line begins or what it says.
_KNOWN = {
    # Kernels for a GPU that this machine has not; torchao says so whenever transformers is imported.
    "torchao": "Failed to load ",
    # torchao registers enums in a way that newer torch does not need.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
}


class _Known(logging.Filter):
    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line may pass."""
        return self._words not in record.getMessage()


def hide_known_lines() -> None:
    """Let the known lines not pass; nothing is imported for it, and all other lines pass."""
    for name, words in _KNOWN.items():
        logger = logging.getLogger(name)
        if not any(isinstance(item, _Known) for item in logger.filters):
            logger.addFilter(_Known(words))
