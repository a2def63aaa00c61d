"""A fixture with a stand-in for the Hub on this machine."""

from __future__ import annotations

import pytest
from helpers.hub import Hub, served


@pytest.fixture(scope="module")
def endpoint():
    with served(Hub) as address:
        yield address
