"""A chat server on loopback for the tests of this folder."""

from __future__ import annotations

import pytest
from helpers.chat_server import serve


@pytest.fixture
def server():
    with serve() as running:
        yield running
