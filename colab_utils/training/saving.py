"""Save the result of a training: an older result stays whole until it is replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from colab_utils import locks, replacement
from colab_utils.weights.shards import check_disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerState

# Files of an earlier result. They do not stay next to a new one: an old adapter would
# be loaded with the new model, and a folder with an old recipe counts as finished.
RESULT = (
    "adapter_config.json",
    "adapter_model*",
    "score_head.safetensors",
    "model*.safetensors*",
    "config.json",
    "generation_config.json",
    "tokenizer.*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "chat_template*",
    "training_log.json",
    "training_args.bin",
    "README.md",
    "recipe.json*",
)


class Trained(Protocol):
    """What has a result to save: a trainer, or a `parallel.Result`."""

    @property
    def state(self) -> TrainerState:
        """The state with the log."""

    def save_model(self, folder: str, /) -> None:
        """Write the model or the adapter to a folder."""


def save(
    trained: Trained,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    describe: Callable[[Path], object] | None = None,
) -> None:
    """Save the model or adapter, the tokenizer with its template, training_log.json.

    All files are written to a hidden folder, where `describe` adds the card and the
    recipe; then that folder replaces `folder`. If the process is killed, an older
    result in `folder` stays complete. Files that are not of a result, such as
    checkpoints, stay in `folder`. Raises OSError if the disk has too little space: free
    some and save again, while the trainer has the result.
    """
    with locks.writing(folder):
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        new = part / folder.name  # `describe` finds the name of the result here
        part.mkdir()  # without parents: a disk that disappeared is not made anew
        new.mkdir()
        try:
            check_disk(new, _size(trained), folder.name)
            _write(trained, tokenizer, new)
            if describe:
                describe(new)
            replacement.replace(new, folder, keep=_kept(folder))
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _size(trained: Trained) -> int:
    """Return the bytes of the weights to save; 0 for a result of processes."""
    model = getattr(trained, "model", None)
    weights = model.parameters() if model is not None else ()
    return sum(weight.nbytes for weight in weights if weight.requires_grad)


def _write(trained: Trained, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    trained.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and full of paths
    tokenizer.save_pretrained(folder)
    _in_order(folder / "adapter_config.json")
    state = trained.state
    log = [entry for entry in state.log_history if "loss" in entry]
    # A run that is resumed at its end makes one more step, with learning rate 0.
    log = [entry for entry in log if entry["step"] <= state.max_steps]
    # Sorted: a resumed run has read its first entries from a checkpoint, in that order.
    text = json.dumps(log, indent=1, sort_keys=True)
    (folder / "training_log.json").write_text(text)


def _in_order(config: Path) -> None:
    """Sort the sets of an adapter's config: two equal runs write equal files.

    Python's order of a set of texts differs from process to process.
    """
    if not config.exists():
        return
    fields = json.loads(config.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(name), list):
            fields[name].sort()
    config.write_text(json.dumps(fields, indent=2, sort_keys=True), encoding="utf-8")


def _kept(folder: Path) -> list[str]:
    """Return the names in a folder that are not files of an earlier result."""
    replacement.restore(folder)
    paths = folder.iterdir() if folder.is_dir() else []
    return [path.name for path in paths if path.is_dir() or not _is_result(path.name)]


def _is_result(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in RESULT)
