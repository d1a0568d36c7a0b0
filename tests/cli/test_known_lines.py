"""Lines of other libraries that look like failures: those alone are hidden."""

from __future__ import annotations

import logging

from tailwise.cli.main import hide_known_lines


def test_known_lines_are_hidden_and_all_others_pass(caplog, monkeypatch):
    hide_known_lines()
    hide_known_lines()
    ao, pytree = logging.getLogger("torchao"), logging.getLogger("torch.utils._pytree")
    assert sum(type(item).__name__ == "_Known" for item in ao.filters) == 1
    monkeypatch.setattr(pytree, "propagate", True)
    with caplog.at_level(logging.WARNING):
        ao.warning("Failed to load /x/_C_mxfp8.so: Could not load this library")
        ao.warning("something that matters")
        pytree.warning("<enum 'A'> is an Enum subclass and is now natively supported by torch.compile")
        pytree.warning("another")
    assert [record.getMessage() for record in caplog.records] == ["something that matters", "another"]
