"""Colab's own language model.

As in colabtools: `generate_text` takes a text and returns one, and asks a server of
Google with a token that Colab provides. Errors are those of the package `openai`.
"""

from __future__ import annotations

import json
import os

from google.colab import _message


class RateLimitError(Exception):
    """The server's limit is reached, as `openai.RateLimitError` says."""


def generate_text(
    prompt: str, model_name: str = "google/gemini-2.0-flash", stream: bool = False
) -> str:
    """Return the next answer of the double, with prompt and model filled in."""
    answers = json.loads(os.environ.get("COLAB_DOUBLE_AI", "[null]"))
    answer = _message.next_answer("ai", answers)
    if answer is None:
        raise RateLimitError("Error code: 429 - quota exceeded")
    return answer.replace("{prompt}", prompt).replace("{model_name}", model_name)
