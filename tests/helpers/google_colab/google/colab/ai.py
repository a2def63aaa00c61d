"""Colab's own language models, with the interface of colabtools.

`generate_text` takes a text and returns one, or a generator of texts with
`stream=True`. It asks a server of Google with a token that Colab provides. The errors
of that server are those of the package `openai`, with a `status_code`. On Colab
Enterprise, the import fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from typing import Any

from google.colab import _message

if os.environ.get("COLAB_DOUBLE_AI") == "enterprise":
    raise ImportError("google.colab.ai is only supported in external Colab.")

__all__ = ["ModelProxyServiceError", "generate_text", "list_models"]


class ModelProxyServiceError(Exception):
    """The service that lists the models gave an answer that makes no sense."""


class APIStatusError(Exception):
    """The server answered with an error, as `openai.APIStatusError` says."""

    status_code = 500


class RateLimitError(APIStatusError):
    """The server's limit is reached."""

    status_code = 429


class BadRequestError(APIStatusError):
    """The server declined the prompt."""

    status_code = 400


def generate_text(
    prompt: str, model_name: str = "google/gemini-2.5-flash", stream: bool = False
) -> str | Generator[str, Any, None]:
    """Return the next answer of the double, with prompt and model filled in."""
    if not prompt:
        raise ValueError("Prompt cannot be empty.")
    if not isinstance(prompt, str):
        raise ValueError("Prompt must be a string.")
    answers = json.loads(os.environ.get("COLAB_DOUBLE_AI", "[null]"))
    answer = _message.next_answer("ai", answers)
    if answer is None:
        raise RateLimitError("Error code: 429 - quota exceeded")
    if answer == "declined":
        raise BadRequestError("Error code: 400 - blocked")
    text = answer.replace("{prompt}", prompt).replace("{model_name}", model_name)
    return (part for part in text.partition(" ")) if stream else text


def list_models() -> list[str]:
    """Return the names of the models."""
    if os.environ.get("COLAB_DOUBLE_MODELS") == "failed":
        raise ModelProxyServiceError("Failed to decode JSON response")
    return ["google/gemini-2.5-flash", "google/gemini-2.5-pro"]
