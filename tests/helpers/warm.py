"""Start processes that have imported the libraries: forks of one that did only that."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]


def context() -> ForkServerContext:
    """Return the context whose processes are such forks; one server is started.

    An import takes 8 s of a core. The server computes nothing, so it has no threads and
    no state of the libraries that a fork would break.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["helpers.libraries"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")
        forkserver.ensure_running()
    return found


def call(environment: dict[str, str], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function with these environment variables: a fork has the server's."""
    os.environ.clear()
    os.environ.update(environment)
    return function(*args)


def run(function: Callable[..., Any], *args: Any, cold: bool = False) -> Any:
    """Return what a function returns in such a fork, or raise what it raises.

    If `cold`, the process is a new one: libraries read some variables of the
    environment, such as HF_ENDPOINT, when they are imported.
    """
    method = multiprocessing.get_context("spawn") if cold else context()
    with ProcessPoolExecutor(1, mp_context=method) as pool:
        return pool.submit(call, dict(os.environ), function, *args).result()
