"""Colab's secrets.

As in colabtools: a request waits 10 seconds for the page. The page does not answer
while its window "Grant access" is open, and outside of a browser. Two of the errors are
`errors.Error`, and NotebookAccessError is not.
"""

from __future__ import annotations

import json
import os
import threading

from google.colab import _message, errors

_lock = threading.Lock()  # one request at a time


class NotebookAccessError(Exception):
    """The user did not give this notebook access to the secret."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(errors.Error):
    """There is no secret of this name."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(errors.Error):
    """The page did not answer within 10 seconds."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when "
            "running from the Colab UI."
        )


def get(key: str) -> str:
    """Return a secret, as the page answers; ValueError for a name with spaces."""
    if not key or not isinstance(key, str):
        raise ValueError("Please enter a valid secret name")
    if any(character.isspace() for character in key):
        raise ValueError("Secret name cannot contain spaces or whitespace")
    with _lock:
        answers = json.loads(os.environ.get("COLAB_DOUBLE_SECRETS", "{}"))
        reply = answers.get(key, {"exists": False})
        reply = _message.next_answer(key, reply if isinstance(reply, list) else [reply])
        if reply is None:
            _message.wait(10)
    if not reply:
        raise TimeoutException(key)
    if not reply.get("exists", False):
        raise SecretNotFoundError(key)
    if not reply.get("access", False):
        raise NotebookAccessError(key)
    return reply.get("payload", "")
