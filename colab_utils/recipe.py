"""recipe.json: how a dataset, an adapter or a model was made."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
)


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that influence a result."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(folder: Path, **fields: Any) -> dict[str, Any]:
    """Write recipe.json and return its content.

    It is the last file of an artifact: where it exists, the artifact is complete.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    recipe = {**fields, "made": now, "versions": versions()}
    write_json(folder / "recipe.json", recipe)
    return recipe


def write_json(file: Path, value: dict[str, Any], sort_keys: bool = False) -> None:
    """Write a JSON object to a file, which is complete at any moment."""
    part = file.with_name(f"{file.name}.part")
    text = json.dumps(value, indent=2, sort_keys=sort_keys)
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def read(folder: Path) -> dict[str, Any]:
    """Return the recipe of an artifact that `Workspace.find` has found."""
    return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
