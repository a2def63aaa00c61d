"""Colab's upload and download, outside of a browser."""

from __future__ import annotations

import os

from google.colab import _message


def download(filename: str) -> None:
    """Offer a file to the browser; FileNotFoundError if it is missing."""
    if not os.path.exists(filename):
        raise FileNotFoundError(f"Cannot find file: {filename}")


def upload() -> dict[str, bytes]:
    """Ask for files: outside of a browser, nobody answers."""
    raise _message.MessageError("TypeError: Cannot read properties of undefined")
