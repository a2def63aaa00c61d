"""The secrets of Colab and Kaggle: ask for a token by its names, and explain."""

from __future__ import annotations

import functools
import sys
from typing import Any

# The key under which IPython keeps the number of the cell that got no answer.
UNANSWERED = "colab_utils: the cell in which Colab's secrets did not answer"

Found = tuple[str, str]  # the token, and where it was


@functools.cache
def print_once(line: str) -> None:
    """Print a line the first time in a process: several modules ask for the token."""
    print(line)


def clean(value: str | None) -> str:
    """Return `value` without the spaces, newlines and quotes that copying adds."""
    return (value or "").strip().strip("\"'").strip()


def from_colab(names: tuple[str, ...]) -> Found | None:
    """Return the first of these names among Colab's secrets, and where it was.

    Each request waits up to ten seconds for the page. After one that got no answer, the
    same cell does not ask again, and the next cell does.
    """
    try:
        from google.colab import errors, userdata
    except ImportError:
        print_once(
            "Colab's secrets cannot be read here: google.colab.userdata is missing"
        )
        return None
    memory, cell = _running_cell()
    if cell is not None and memory.get(UNANSWERED) == cell:
        return None
    timeout = getattr(userdata, "TimeoutException", ())  # absent in older images
    for name in names:
        try:
            value = clean(userdata.get(name))
        except userdata.SecretNotFoundError:
            continue
        except userdata.NotebookAccessError:
            print_once(
                f"Colab's secret `{name}` is closed to this notebook: click the "
                "key in the left bar and switch its 'Notebook access' on"
            )
            continue
        except timeout:
            memory[UNANSWERED] = cell
            print(unanswered(name, names))
            return None
        except errors.Error as error:
            print_once(
                f"Colab's secret `{name}` cannot be read: {type(error).__name__}"
            )
            continue
        if value:
            return value, f"Colab's secret `{name}`"
    return None


def unanswered(name: str, names: tuple[str, ...]) -> str:
    """Return what to do after Colab's page gave no secret within ten seconds."""
    return (
        f"Colab's secret `{name}`: access was not granted within 10 seconds. Click "
        "'Grant access', then run this cell again. If no window asks (for example in "
        f"VS Code), store {names[-1]}=... in the file .env instead"
    )


def _running_cell() -> tuple[dict[str, Any], int | None]:
    """Return IPython's dictionary for extensions, and the running cell's number.

    Without IPython, the dictionary is new and the number is None.
    """
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if shell := get_ipython():
            return shell.meta, shell.execution_count
    return {}, None


def from_kaggle(names: tuple[str, ...]) -> Found | None:
    """Return the first of these names among the secrets of a Kaggle notebook."""
    try:
        import kaggle_secrets
    except ImportError:
        print_once("Kaggle's secrets cannot be read here: kaggle_secrets is missing")
        return None
    for name in names:
        try:
            value = clean(kaggle_secrets.UserSecretsClient().get_secret(name))
        except kaggle_secrets.BackendError:  # its answer to a name that is not attached
            continue
        except kaggle_secrets.CredentialError as error:
            print_once(
                f"Kaggle's secret `{name}` cannot be read: {type(error).__name__}"
            )
            continue
        except ConnectionError:
            print_once(
                f"Kaggle's secret `{name}` cannot be read: Kaggle did not answer. "
                "Switch Settings > Internet on, and attach the secret in Add-ons > "
                "Secrets"
            )
            continue
        if value:
            return value, f"Kaggle's secret `{name}`"
    return None
