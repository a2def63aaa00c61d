"""A generator without a key: the models that Google offers inside of Colab."""

from __future__ import annotations

import importlib.util

from colab_utils import runtime
from colab_utils.creation.writing import Generator, Messages


def has_colab_ai() -> bool:
    """Return whether this is Colab, with `google.colab.ai`, and not headless."""
    if not runtime.on_colab() or runtime.headless():
        return False
    return importlib.util.find_spec("google.colab.ai") is not None


def colab_generator(model: str = "") -> Generator:
    """Return a generator that asks Colab's model; "" is the model that Colab chooses.

    Raises RuntimeError where `google.colab.ai` is missing. The generator raises
    ConnectionError if Colab's server fails, for example at its limit.
    """
    try:
        from google.colab import ai
    except ImportError as error:
        raise RuntimeError(
            "google.colab.ai is missing: it exists on Colab only. Use another "
            "GENERATOR, such as the address of a server."
        ) from error
    named = {"model_name": model} if model else {}

    def ask(messages: Messages) -> str:
        prompt = "\n\n".join(turn["content"] for turn in messages)
        try:
            return ai.generate_text(prompt, **named) or ""
        except Exception as error:  # the openai package raises many types
            raise ConnectionError(
                f"Colab's model failed ({type(error).__name__}: {str(error)[:160]}). "
                "The answers so far are kept: run this cell again later to continue."
            ) from error

    return lambda conversations: [ask(messages) for messages in conversations]
