"""The Hugging Face token and other keys: found in several places, printed nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from colab_utils import runtime
from colab_utils.hub.secret_stores import (
    Found,
    clean,
    from_colab,
    from_kaggle,
    print_once,
)

NAMES = ("HF_TOKEN", "huggingface")
MAKE = "create a token at https://huggingface.co/settings/tokens"
STORE = (
    "on Colab or Kaggle store it as the secret `huggingface`, elsewhere as HF_TOKEN in "
    ".env"
)


class Token(str):
    """A token or key whose repr, in an output or a traceback, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'hf_***'" if self.startswith("hf_") else "'***'"


def scrub(text: str, token: str | None) -> str:
    """Return `text` without `token` and without anything that looks like a token."""
    token = clean(token)
    shown = text.replace(token, "***") if token else text
    shown = re.sub(r"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}", "hf_***", shown)
    # If the token is part of its own replacement ("hf_***"), show nothing at all.
    return "" if token and token in shown else shown


def _from_dotenv(names: tuple[str, ...]) -> Found | None:
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
        for name in names:
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


def _stored(names: tuple[str, ...]) -> Iterator[Found]:
    """Yield each value with one of these names, and where it is, the preferred first.

    Colab's and Kaggle's secrets are searched from the last name to the first.
    """
    for name in names:
        if value := clean(os.environ.get(name)):
            yield value, f"the environment variable {name}"
    if runtime.on_kaggle():
        found = from_kaggle(names[::-1])
    else:
        ask = runtime.on_colab() and not runtime.headless()
        found = from_colab(names[::-1]) if ask else None
    if found:
        yield found
    if found := _from_dotenv(names):
        yield found


def _candidates() -> Iterator[Found]:
    """Yield each Hugging Face token that is found, and where it is."""
    yield from _stored(NAMES)
    if found := _from_login():
        yield found


def _usable(found: Found) -> bool:
    """Return whether a header can hold the value; print a line if it cannot."""
    value, source = found
    if value.isascii() and value.isprintable() and " " not in value:
        return True
    print_once(f"{source} is ignored: a token has no spaces and no special characters")
    return False


def secret(name: str) -> str | None:
    """Return the value stored under a name, or None; print once where it was found.

    This searches the environment, the secrets of Colab (not in a headless run) or
    Kaggle, and `.env`. The value itself is never printed.
    """
    for value, source in filter(_usable, _stored((name,))):
        print_once(f"{name}: {source}")
        return Token(value)
    return None


def token() -> str | None:
    """Return the user's Hugging Face token or None; print once where it was found.

    This searches the environment (HF_TOKEN, huggingface), the secrets of Colab (not in
    a headless run) or Kaggle (huggingface, HF_TOKEN), `.env` and the login of
    `hf auth login`. The token itself is never printed.
    """
    for value, source in filter(_usable, _candidates()):
        odd = "" if value.startswith("hf_") else ', though it does not begin with "hf_"'
        print_once(f"Hugging Face token: {source}{odd}")
        return Token(value)
    print_once(
        "Hugging Face token: none; public models do not need one. If you need one: "
        f"{MAKE}; {STORE}"
    )
    return None
