"""Plans of a made model."""

from __future__ import annotations

import pytest
from made_plans import model

from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request


@pytest.fixture(scope="session")
def audit():
    return model()


@pytest.fixture(scope="session")
def plan(audit):
    return plan_prune(audit, Request(0.7, "alpha", "wanda"))
