"""The healthy audit that most tests change in one place."""

from __future__ import annotations

import pytest
from made_audits import healthy_rows

from tailwise.audits.rows import LayerRow


@pytest.fixture
def rows() -> dict[str, LayerRow]:
    return healthy_rows()
