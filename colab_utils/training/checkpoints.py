"""Checkpoints of a run, to resume from after a disconnect, and its result."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

INPUTS = "inputs.json"  # identifies the run: its data and parameters
REQUIRED = {"trainer_state.json", "optimizer.pt", "scheduler.pt"}


def resume_point(checkpoints: Path, inputs: dict[str, Any]) -> str | None:
    """Return the newest complete checkpoint of the same run, or None for a new start.

    `inputs` identifies the run (data hash, method, rank, ...) and is written to
    inputs.json. Checkpoints of another run are removed, and incomplete ones are
    skipped; a printed line reports either.
    """
    note = checkpoints / INPUTS
    text = json.dumps(inputs, indent=2, sort_keys=True)
    found = sorted(_numbered(checkpoints), key=_step, reverse=True)
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        if found:
            print("removing the checkpoints of a run with other parameters or data")
        for folder in found:
            workspace.discard(folder)
        found = []
        checkpoints.mkdir(parents=True, exist_ok=True)
        note.write_text(text, encoding="utf-8")
    for folder in found:
        if is_complete(folder):
            print(f"resuming at step {_step(folder)}, from {folder}")
            return str(folder)
        print(f"skipping {folder.name}: it is incomplete (interrupted while saving)")
    return None


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has all files for resuming, and each is complete."""
    files = [file for file in folder.iterdir() if file.is_file()]
    return (
        {file.name for file in files} >= REQUIRED
        and any(file.suffix == ".safetensors" for file in files)
        and all(map(_is_whole, files))
    )


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the model or adapter, the tokenizer with its template, training_log.json.

    Files of an earlier run in `folder` are removed first. An old adapter would be
    loaded with the new model, and a folder with an old recipe counts as finished.
    """
    for old in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
        old.unlink()
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and full of paths
    tokenizer.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / "training_log.json").write_text(json.dumps(log, indent=1))


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove the checkpoints of a run whose result is saved."""
    workspace.discard(checkpoints, ignore_errors=True)


def _numbered(checkpoints: Path) -> list[Path]:
    folders = checkpoints.glob("checkpoint-*")
    return [one for one in folders if re.fullmatch(r"checkpoint-\d+", one.name)]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _is_whole(file: Path) -> bool:
    """Return whether a file of a checkpoint was written to its end."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin"):  # torch.save writes a zip file
            return zipfile.is_zipfile(file)
    except (ValueError, SafetensorError):
        return False
    return True
