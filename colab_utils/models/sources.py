"""Find a model: the bundled demo, a folder on this machine, or a Hub repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colab_utils import demo, hub
from colab_utils.weights import shards


@dataclass(frozen=True)
class Source:
    """The location of a model's files: `name` is "demo", a folder or a Hub id."""

    name: str

    @property
    def path(self) -> str:
        """The folder or the Hub id, as `from_pretrained` takes it."""
        return str(demo.MODEL) if self.name == "demo" else self.name

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, or None for a Hub id."""
        path = Path(self.path)
        return path if path.is_dir() else None

    def read_json(self, file: str) -> dict[str, Any]:
        """Return the content of a JSON file, {} if the model has no such file."""
        from transformers.utils.hub import cached_file

        with self.access() as token:
            path = cached_file(
                self.path,
                file,
                token=token,
                _raise_exceptions_for_missing_entries=False,
            )
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

    @contextmanager
    def access(self) -> Iterator[str | bool]:
        """Yield the Hub token, or False, and explain errors while loading.

        False is for a folder, and if there is no token: with None, the Hub's library
        would look for one, and ask Colab's secrets a second time.

        Raises PermissionError, FileNotFoundError or ConnectionError, each with the next
        step, and ValueError for a model that transformers has no code for.
        """
        token = None if self.folder else hub.token()
        with hub.hub_errors(self.name, token):
            try:
                yield token or False
            except ValueError as error:
                self._explain(error)
                raise

    def _explain(self, error: ValueError) -> None:
        """Raise ValueError with the next step if transformers has no code for this."""
        if "contains custom code" in str(error):
            raise ValueError(
                f"{self.name} can be loaded only with its own Python code (auto_map in "
                "its config). The course runs no code of a model's repository: set "
                "MODEL to a model that transformers itself supports."
            ) from error
        if kind := re.search("model type `(.+?)` but Transformers", str(error)):
            raise ValueError(
                f"{self.name} has the model type {kind[1]}, which the installed "
                "transformers does not know: set MODEL to another model."
            ) from error

    def check_files(self, *files: str) -> None:
        """Raise FileNotFoundError if a local folder has none of these files."""
        folder = self.folder
        if folder and not any((folder / file).is_file() for file in files):
            raise FileNotFoundError(
                f"{folder} is not a model folder: {' or '.join(files)} is missing. "
                "Set MODEL to a folder that save_pretrained wrote, or to a Hub id."
            )

    def download(self, weights: str) -> Path:
        """Return the local folder; download it from the Hub if it is not there yet.

        `weights` is the pattern of the weight files. Raises FileNotFoundError if the
        repository has no such files.
        """
        if self.folder:
            return self.folder
        from huggingface_hub import snapshot_download

        files = [weights, "*.json", "tokenizer*", "*.jinja", "merges.txt"]
        files += ["LICENSE*", "USE_POLICY*"]
        with self.access() as token:
            folder = Path(
                snapshot_download(self.name, allow_patterns=files, token=token)
            )
        if not any(folder.glob(weights)):
            raise FileNotFoundError(shards.no_safetensors(self.name))
        return folder


def location(name: str) -> str:
    """Return the folder or Hub id that transformers loads: a folder for "demo"."""
    return Source(name).path


def download(name: str, weights: str = "*.safetensors") -> Path:
    """Return the local folder of a model's files, downloaded from the Hub if needed.

    Raises FileNotFoundError, with the next step, if no file matches `weights`.
    """
    return Source(name).download(weights)
