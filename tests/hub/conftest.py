"""A fixture with a stand-in for the Hub on this machine."""

from __future__ import annotations

import http.server
import threading

import pytest
from helpers.hub import Hub


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
