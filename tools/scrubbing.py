"""Keep secrets out of executed notebooks: known ones in every form, tokens by shape."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from colab_utils import hub, runtime

# The names of environment variables, and of lines in .env, that hold a secret.
NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)S?$|^huggingface$", re.IGNORECASE)
SHORTEST = 8  # a shorter text is no secret, and may be part of any word
NUMBER = re.compile(r"[0-9.]+")  # so may a number
# The words of the notebook format: without one of them a file is no notebook.
FORMAT = {"cell_type", "display_data", "execute_result", "execution_count", "markdown"}
FORMAT |= {"metadata", "nbformat", "nbformat_minor", "output_type", "papermill"}


def known() -> list[str]:
    """Return the secrets of the environment, of .env files and of `hf auth login`.

    The longest comes first: one may be a part of another.
    """
    found = {value.strip() for value in _values()}
    found = {one for one in found - FORMAT if len(one) >= SHORTEST}
    secret = (one for one in found if not NUMBER.fullmatch(one))
    return sorted(secret, key=len, reverse=True)


def _values() -> Iterator[str]:
    from dotenv import dotenv_values
    from huggingface_hub import constants

    yield from (value for name, value in os.environ.items() if NAMES.search(name))
    root = runtime.project_root()
    for folder in {Path.cwd(), *([root] if root else [])}:
        try:
            lines = dotenv_values(folder / ".env", interpolate=False)
        except (OSError, UnicodeDecodeError):
            continue  # then the notebooks can't read it either
        yield from (value or "" for name, value in lines.items() if NAMES.search(name))
    login = Path(constants.HF_TOKEN_PATH)
    if login.is_file() and os.access(login, os.R_OK):
        yield login.read_text(encoding="utf-8", errors="replace")


def forms(secret: str) -> set[str]:
    """Return the texts as which a secret may stand in a notebook or a page.

    These are itself, as JSON, as JSON within JSON, in an address, as HTML, as Python
    shows it, and in base64, where it begins at any of three places.
    """
    found = {secret, repr(secret)[1:-1], quote(secret), quote(secret, safe="")}
    found |= {quote_plus(secret), *_base64(secret)}
    for ascii_only in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_only)[1:-1]
        found |= {once, json.dumps(once, ensure_ascii=ascii_only)[1:-1]}
        found |= {json.dumps(one, ensure_ascii=ascii_only)[1:-1] for one in found}
    return found | {html.escape(one, marks) for one in found for marks in (True, False)}


def _base64(secret: str) -> Iterator[str]:
    """Yield the letters that depend on the secret alone, after 0 to 2 other bytes."""
    data = secret.encode(errors="surrogateescape")
    for before in range(3):
        first, last = -(-before * 4 // 3), (before + len(data)) * 4 // 3
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            letters = encode(bytes(before) + data).decode()[first:last]
            if len(letters) >= SHORTEST:
                yield letters


def remove(text: str) -> str:
    """Replace known secrets, and anything like a Hub token, by ***."""
    for secret in known():
        for written in sorted(forms(secret), key=len, reverse=True):
            text = text.replace(written, "***")
    return hub.scrub(text, None)


def joined(text: str) -> str:
    """Return a notebook whose neighboring pieces of one stream are one output.

    What a cell prints arrives in pieces, and a secret may be in two of them.
    """
    notebook, found = json.loads(text), False
    for cell in notebook["cells"]:
        outputs: list[dict[str, Any]] = []
        for output in cell.get("outputs", ()):
            last = outputs[-1] if outputs else {}
            name = output.get("name")
            if output["output_type"] == last.get("output_type") == "stream" and (
                name == last["name"]
            ):
                pieces = "".join([*last["text"], *output["text"]])
                last["text"] = pieces.splitlines(keepends=True)
                found = True
            else:
                outputs.append(output)
        if outputs:
            cell["outputs"] = outputs
    if not found:  # the usual case, after each cell: nothing is written anew
        return text
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)


class Clean:
    """How papermill writes an executed notebook: without secrets, and whole or not.

    papermill writes after every cell, so that also a run that is killed leaves none.
    """

    def __init__(self) -> None:
        self.found = False  # whether there was a secret to remove

    def write(self, text: str, path: str) -> None:
        """Write a notebook aside, then put it in its place."""
        whole = joined(text)
        clean = remove(whole)
        self.found |= clean != whole
        part = Path(f"{path}.part")
        part.write_text(clean, encoding="utf-8")
        part.replace(path)

    def pretty_path(self, path: str) -> str:
        """Return the path as papermill shows it."""
        return path
