"""A generator without a key: the models that Google offers inside of Colab."""

from __future__ import annotations

from colab_utils import runtime
from colab_utils.creation.writing import Generator, Messages

REFUSED = (400, 413, 422)  # status of a prompt that is declined: it stays declined


def has_colab_ai() -> bool:
    """Return whether this is Colab, with `google.colab.ai`, and not headless."""
    if not runtime.on_colab() or runtime.headless():
        return False
    try:  # the module is there on Colab Enterprise, too, and refuses to be imported
        from google.colab import ai  # noqa: F401
    except ImportError:
        return False
    return True


def colab_generator(model: str = "") -> Generator:
    """Return a generator that asks Colab's model; "" is the model that Colab chooses.

    Raises RuntimeError where `google.colab.ai` is missing, and ValueError for a model
    that Colab does not have. The generator raises ConnectionError if Colab's server
    fails, for example at its limit. A prompt that the server declines gets the answer
    "", and a printed line says so.
    """
    try:
        from google.colab import ai
    except ImportError as error:
        raise RuntimeError(
            f"google.colab.ai is missing ({error}): it exists on Colab only. Use "
            "another generator, such as the address of a server."
        ) from error
    if model:
        try:
            known = ai.list_models()
        except Exception as error:
            raise _failure(error) from error
        if model not in known:
            raise ValueError(
                f"Colab has no model {model!r}. It has {', '.join(known)}."
            )
    named = {"model_name": model} if model else {}
    answered = 0

    def ask(messages: Messages) -> str:
        nonlocal answered
        prompt = "\n\n".join(turn["content"] for turn in messages)
        try:
            text = ai.generate_text(prompt, **named) or ""
        except Exception as error:  # the openai package raises many types
            # Before the first answer, the reason may be anything but the prompt.
            if answered and getattr(error, "status_code", None) in REFUSED:
                print(
                    f"one prompt is left out: Colab's model declined it ({error!s:.99})"
                )
                return ""
            raise _failure(error) from error
        answered += 1
        return text

    return lambda conversations: [ask(messages) for messages in conversations]


def _failure(error: Exception) -> ConnectionError:
    return ConnectionError(
        f"Colab's model failed ({type(error).__name__}: {str(error)[:160]}). "
        "The answers so far are kept: run this cell again later to continue."
    )
