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
# The types of the fields that the course reads again.
TEXTS = ("kind", "name", "source", "row_kind", "base_model", "method", "metric")
OBJECTS = ("rows", "parameters", "results", "versions", "sha256")
KINDS: dict[str, type] = {**dict.fromkeys((*TEXTS, "dtype"), str)}
KINDS |= dict.fromkeys(OBJECTS, dict)
REMAKE = "Run the notebook that wrote it again, or put the file back."


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


class Recipe(dict[str, Any]):
    """The fields of a recipe.json; one that is missing raises ValueError."""

    def __init__(self, file: Path, fields: dict[str, Any]) -> None:
        self.file = file
        super().__init__(fields)

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.file} has no {name!r}. {REMAKE}")


def read(folder: Path | str) -> Recipe:
    """Return the recipe of an artifact that `Workspace.find` has found.

    Raises ValueError for a file that is not a recipe: it was cut short, or changed.
    """
    file = Path(folder) / "recipe.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}). {REMAKE}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds no fields. {REMAKE}")
    for name, kind in KINDS.items():
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            wanted = "a text" if kind is str else "an object with fields"
            raise ValueError(
                f"{file} has {name} = {json.dumps(value)[:80]}, which is not {wanted}. "
                f"{REMAKE}"
            )
    return Recipe(file, fields)
