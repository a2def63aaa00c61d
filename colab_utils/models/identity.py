"""Recognize a model by its content, whatever its name is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from colab_utils.models.loading import load_config
from colab_utils.models.sources import Source
from colab_utils.weights import shards

SAMPLE = 64  # bytes of each tensor


def fingerprint(name: str) -> str:
    """Return a hash of a model's weights, as hexadecimal digits, or its name.

    It covers the name, dtype, shape and first 64 bytes of each tensor, and the config's
    rope parameters. Two names on the Hub with the same weights have the same
    fingerprint, even if their files are cut differently. Only files that are on this
    machine are read: call it after the model is loaded. A model without safetensors
    files keeps its name, and a printed line says so.
    """
    from transformers.utils.hub import cached_file

    source = Source(name)
    config = load_config(name)
    with source.access() as token:
        file = str(cached_file(source.path, "config.json", token=token))
    try:
        files = shards.find_shards(Path(file).parent)
    except FileNotFoundError:
        print(f"{name} has no safetensors files: it is recognized by its name")
        return name
    rope = getattr(config, "rope_parameters", None)
    digest = hashlib.sha256(json.dumps(rope, sort_keys=True).encode())
    for tensor, sample in sorted(_samples(files)):
        digest.update(tensor.encode() + sample)
    return digest.hexdigest()


def _samples(files: list[Path]) -> list[tuple[str, bytes]]:
    """Return each tensor's name, dtype and shape as text, and its first bytes."""
    found = []
    for path in files:
        entries, start = shards.read_header(path)
        with path.open("rb") as file:
            for name, entry in entries.items():
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                sample = file.read(min(SAMPLE, end - begin))
                found.append((f"{name} {entry['dtype']} {entry['shape']}", sample))
    return found
