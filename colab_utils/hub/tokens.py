"""The Hugging Face token: found in several places, printed nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from colab_utils import runtime
from colab_utils.hub.secret_stores import (
    NAMES,
    Found,
    clean,
    from_colab,
    from_kaggle,
    print_once,
)

MAKE = "create a token at https://huggingface.co/settings/tokens"
STORE = (
    "on Colab or Kaggle store it as the secret `huggingface`, elsewhere as HF_TOKEN in "
    ".env"
)


class _Token(str):
    """A token whose repr, in a cell's output or a traceback, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'hf_***'"


def scrub(text: str, token: str | None) -> str:
    """Return `text` without `token` and without anything that looks like a token."""
    token = clean(token)
    shown = text.replace(token, "***") if token else text
    shown = re.sub(r"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}", "hf_***", shown)
    # If the token is part of its own replacement ("hf_***"), show nothing at all.
    return "" if token and token in shown else shown


def _from_dotenv() -> Found | None:
    from dotenv import dotenv_values

    here, root = Path.cwd(), runtime.project_root()
    folders = [here, *here.parents]
    for folder in folders[: folders.index(root) + 1 if root else 1]:
        path = folder / ".env"
        if not path.is_file():
            continue
        try:
            values = dotenv_values(path, interpolate=False)
        except (OSError, UnicodeDecodeError) as error:
            print_once(f"{path} is ignored: it cannot be read ({type(error).__name__})")
            continue
        for name in NAMES:
            if value := clean(values.get(name)):
                return value, f"{name} in {path}"
    return None


def _from_login() -> Found | None:
    from huggingface_hub import constants, get_token

    path = Path(constants.HF_TOKEN_PATH)
    try:
        value = clean(path.read_text(errors="replace")) if path.is_file() else ""
    except OSError as error:
        print_once(f"{path} is ignored: it cannot be read ({type(error).__name__})")
        return None
    # get_token() renews the token of a browser login. It reads the environment first,
    # and without a login it would ask Colab's secrets.
    others = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
    if value and not any(os.environ.get(name) for name in others):
        value = clean(get_token())
    return (value, "the login kept by `hf auth login`") if value else None


def _candidates() -> Iterator[Found]:
    """Yield each token that is found, and where, in the order of preference."""
    for name in NAMES:
        if value := clean(os.environ.get(name)):
            yield value, f"the environment variable {name}"
    sources: list[Callable[[], Found | None]] = [_from_dotenv, _from_login]
    if runtime.on_kaggle():
        sources.insert(0, from_kaggle)
    elif runtime.on_colab() and not runtime.headless():
        sources.insert(0, from_colab)
    for source in sources:
        if found := source():
            yield found


def token() -> str | None:
    """Return the user's Hugging Face token or None; print once where it was found.

    This searches the environment (HF_TOKEN, huggingface), the secrets of Colab (not in
    a headless run) or Kaggle (huggingface, HF_TOKEN), `.env` and the login of
    `hf auth login`. The token itself is never printed.
    """
    for value, source in _candidates():
        if not (value.isascii() and value.isprintable()) or " " in value:
            print_once(
                f"{source} is ignored: a token has no spaces and no special characters"
            )
            continue
        odd = "" if value.startswith("hf_") else ', though it does not begin with "hf_"'
        print_once(f"Hugging Face token: {source}{odd}")
        return _Token(value)
    print_once(
        "Hugging Face token: none; public models do not need one. If you need one: "
        f"{MAKE}; {STORE}"
    )
    return None
