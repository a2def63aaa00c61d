"""Requests to Colab's page, which environment variables answer.

The real module sends a message to the browser and reads the answer from the kernel's
stdin channel. It returns None if no answer comes in time, and raises MessageError if
the page answers with an error.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from google.colab import errors

_calls: Counter[str] = Counter()


class MessageError(errors.Error):
    """The page answered with an error."""


def next_answer(request: str, answers: list[Any]) -> Any:
    """Return the answer to the n-th request of this name; the last one repeats."""
    _calls[request] += 1
    return answers[min(_calls[request], len(answers)) - 1]


def calls() -> dict[str, int]:
    """Return how many requests of each name this process has made."""
    return dict(_calls)


def reset() -> None:
    """Forget all requests, for a test that begins anew."""
    _calls.clear()


def wait(seconds: float) -> None:
    """Wait as for a page that does not answer."""
    time.sleep(float(os.environ.get("COLAB_DOUBLE_WAIT", seconds)))
