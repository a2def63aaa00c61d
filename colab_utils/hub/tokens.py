"""The Hugging Face token: found in several places, printed nowhere."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from colab_utils import runtime

NAMES = ("HF_TOKEN", "huggingface")
MAKE = "create a token at https://huggingface.co/settings/tokens"
STORE = "on Colab store it as the secret `huggingface`, elsewhere as HF_TOKEN in .env"

NO_ANSWER = "Colab's secrets did not answer: they work only in Colab's web page"


@functools.cache
def _print_once(line: str) -> None:
    """Print a line the first time in a process: several modules ask for the token."""
    print(line)


class _Token(str):
    """A token whose repr, in a cell's output or a traceback, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'hf_***'"


def scrub(text: str, token: str | None) -> str:
    """Return `text` without `token` and without anything that looks like a token."""
    token = _clean(token)
    clean = text.replace(token, "***") if token else text
    clean = re.sub(r"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}", "hf_***", clean)
    # If the token is part of its own replacement ("hf_***"), show nothing at all.
    return "" if token and token in clean else clean


def _clean(value: str | None) -> str:
    """Return `value` without the spaces, newlines and quotes that copying adds."""
    return (value or "").strip().strip("\"'").strip()


class _ColabSecrets:
    """Colab's secrets; after a timeout, they are not asked again."""

    silent = False  # True after a timeout: each further try would wait ten seconds

    def find(self) -> tuple[str, str] | None:
        """Return the token among the secrets, and where it was."""
        try:
            from google.colab import errors, userdata
        except ImportError:
            _print_once(
                "Colab's secrets cannot be read here: google.colab.userdata is missing"
            )
            return None
        if self.silent:
            return None
        timeout = getattr(userdata, "TimeoutException", ())  # absent in older images
        for name in reversed(NAMES):
            try:
                value = _clean(userdata.get(name))
            except userdata.SecretNotFoundError:
                continue
            except userdata.NotebookAccessError:
                _print_once(
                    f"Colab's secret `{name}` is closed to this notebook: click the "
                    "key in the left bar and switch its 'Notebook access' on"
                )
                continue
            except timeout:
                self.silent = True
                _print_once(NO_ANSWER)
                return None
            except errors.Error as error:
                _print_once(
                    f"Colab's secret `{name}` cannot be read: {type(error).__name__}"
                )
                continue
            if value:
                return value, f"Colab's secret `{name}`"
        return None


@functools.cache
def _colab_secrets() -> _ColabSecrets:
    """Return the secrets of this process."""
    return _ColabSecrets()


def _from_dotenv() -> tuple[str, str] | None:
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
            _print_once(
                f"{path} is ignored: it cannot be read ({type(error).__name__})"
            )
            continue
        for name in NAMES:
            if value := _clean(values.get(name)):
                return value, f"{name} in {path}"
    return None


def _from_login() -> tuple[str, str] | None:
    from huggingface_hub import constants, get_token

    path = Path(constants.HF_TOKEN_PATH)
    try:
        value = _clean(path.read_text(errors="replace")) if path.is_file() else ""
    except OSError as error:
        _print_once(f"{path} is ignored: it cannot be read ({type(error).__name__})")
        return None
    # get_token() renews the token of a browser login. It reads the environment first,
    # and without a login it would ask Colab's secrets.
    others = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
    if value and not any(os.environ.get(name) for name in others):
        value = _clean(get_token())
    return (value, "the login kept by `hf auth login`") if value else None


def _candidates() -> Iterator[tuple[str, str]]:
    """Yield each token that is found, and where, in the order of preference."""
    for name in NAMES:
        if value := _clean(os.environ.get(name)):
            yield value, f"the environment variable {name}"
    sources: list[Callable[[], tuple[str, str] | None]] = [_from_dotenv, _from_login]
    if runtime.on_colab() and not runtime.headless():
        sources.insert(0, _colab_secrets().find)
    for source in sources:
        if found := source():
            yield found


def token() -> str | None:
    """Return the user's Hugging Face token or None; print once where it was found.

    This searches the environment (HF_TOKEN, huggingface), Colab's secrets (huggingface,
    HF_TOKEN; not in a headless run), `.env` and the login of `hf auth login`. The token
    itself is never printed.
    """
    for value, source in _candidates():
        if not (value.isascii() and value.isprintable()) or " " in value:
            _print_once(
                f"{source} is ignored: a token has no spaces and no special characters"
            )
            continue
        odd = "" if value.startswith("hf_") else ', though it does not begin with "hf_"'
        _print_once(f"Hugging Face token: {source}{odd}")
        return _Token(value)
    _print_once(
        "Hugging Face token: none; public models do not need one. If you need one: "
        f"{MAKE}; {STORE}"
    )
    return None
