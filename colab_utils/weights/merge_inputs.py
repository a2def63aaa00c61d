"""Record the inputs of a merged model, and resume a merge that was stopped."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import recipe, workspace
from colab_utils.weights.adapters import EMBEDDINGS
from colab_utils.weights.shards import all_entries

if TYPE_CHECKING:
    import torch

INPUTS = "inputs.json"  # in the merged model's folder
# Of what `merge` writes in addition to the weights: a higher one merges again.
VERSION = 2
# The base's files that a merged model keeps in addition to its weights.
KEPT = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*", "USE_POLICY*")


def other_files(base: Path, adapter: Path) -> dict[str, Path]:
    """Return, by name, the base's config and license and the adapter's tokenizer."""
    found = {file.name: file for kind in KEPT for file in base.glob(kind)}
    # Not kept: the base's recipe and inputs, an adapter, an index of other files.
    left_out = ["recipe.json", INPUTS, "adapter_", "pytorch_model"]
    if (base / "model.safetensors").exists():
        left_out.append("model.safetensors.index")
    starts = ("tokenizer", "special_tokens", "chat_template")
    own = {f.name: f for f in adapter.iterdir() if f.name.startswith(starts)}
    if "tokenizer_config.json" in own:  # older adapters have the template in that file
        left_out.append("chat_template")
    kept = {n: f for n, f in found.items() if not n.startswith(tuple(left_out))}
    return kept | own


def describe_inputs(
    shards: list[Path],
    adapter: Path,
    others: dict[str, Path],
    quantized_in: torch.dtype | None,
) -> str:
    """Return all that a merge depends on, as a text that two runs can compare."""
    base = []
    for shard in shards:  # by path, size and time: too large to be hashed each time
        path, state = shard.resolve(), shard.stat()
        # The Hub's cache names a file by its hash: a new download is the same file.
        hashed = re.fullmatch("[0-9a-f]{64}", path.name)
        base.append((str(path), state.st_size, 0 if hashed else state.st_mtime_ns))
    files = others | {file.name: file for file in sorted(adapter.glob("adapter_*"))}
    hashes = {name: recipe.sha256(file) for name, file in files.items()}
    # PEFT writes its sets of names in another order in each process.
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    hashes["adapter_config.json"] = json.dumps(_in_order(config), sort_keys=True)
    fields = {"base": base, "files": hashes, "quantized_in": str(quantized_in)}
    return json.dumps(fields | {"version": VERSION})


def _in_order(value: Any) -> Any:
    """Return a value of JSON with its lists of names sorted, also within others."""
    if isinstance(value, dict):
        return {key: _in_order(item) for key, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return value


def is_merged(
    out: Path, inputs: str, sizes: dict[str, int], others: dict[str, Path]
) -> bool:
    """Return whether `out` holds the complete model that a merge would write.

    `sizes` are the bytes of its weight files.
    """
    return (
        _made_of(out, inputs)
        and all((out / name).is_file() for name in (*others, *sizes))
        and all((out / name).stat().st_size == size for name, size in sizes.items())
    )


def finished_shards(part: Path, inputs: str, shards: list[Path]) -> list[Path]:
    """Return the shards that an earlier run has merged into the folder `part`.

    Deletes the folder of a run with other inputs, and the content of a file that was
    not finished.
    """
    if part.exists() and not _made_of(part, inputs):
        workspace.discard(part)
    if (part / "unfinished").exists():  # an empty file takes no space in Drive's trash
        os.truncate(part / "unfinished", 0)
    finished = [shard for shard in shards if (part / shard.name).exists()]
    if finished:
        print(f"resuming: {len(finished)} of {len(shards)} files are merged already")
    return finished


def _made_of(folder: Path, inputs: str) -> bool:
    file = folder / INPUTS
    return file.is_file() and file.read_text("utf-8") == inputs


def warn_about_ids(
    tokenizer: Path | None, shards: list[Path], vocab: int | None
) -> None:
    """Print a line when the tokenizer has token ids without an embedding.

    `vocab` is the number of embeddings if the adapter changes it.
    """
    stored = all_entries(shards)
    if tokenizer is None or EMBEDDINGS not in stored:
        return
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).get_vocab().values()
    rows = vocab or stored[EMBEDDINGS]["shape"][0]
    if max(ids, default=0) >= rows:
        print(
            f"the tokenizer has ids up to {max(ids):,}, the model {rows:,} embeddings: "
            "the model can't read text with the last ids, and can't be written as GGUF"
        )
