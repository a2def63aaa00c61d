"""What keeps a training run safe and visible: precision, resume, progress."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from transformers import Trainer


def precision() -> dict[str, bool]:
    """The `fp16` and `bf16` keywords of a trainer's config on this machine.

    {"fp16": True, "bf16": False} on a T4; both False on a CPU.
    """
    dtype = runtime.detect().dtype
    return {"fp16": dtype == "float16", "bf16": dtype == "bfloat16"}


def float32_adapters(trainer: Trainer) -> None:
    """Make every trainable parameter float32, and check it again as training begins.

    TRL casts the adapters of a quantised model to bfloat16 while it builds the trainer;
    float16 loss scaling then stops at the first step. Call this after the trainer is
    built. Raises TypeError when something has changed a dtype in between.
    """
    from colab_utils.callbacks import CheckFloat32

    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.add_callback(CheckFloat32())


def show_progress(trainer: Trainer, save_minutes: float = 10) -> None:
    """Put the live plot in the place of the trainer's own progress, and save by minutes."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.utils.notebook import NotebookProgressCallback

    from colab_utils.callbacks import LivePlot, SaveEvery

    for kind in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(LivePlot())
    trainer.add_callback(SaveEvery(save_minutes))


def resume_point(checkpoints: Path, made_from: dict[str, Any]) -> str | None:
    """The newest complete checkpoint of the same run, or None to begin at the first step.

    `made_from` says what the run is made from (data hash, method, rank, ...). Checkpoints
    of another run are removed, half-written ones passed over; both are told in a line.
    """
    mark = checkpoints / "made_from.json"
    wanted = json.loads(json.dumps(made_from))
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8")) != wanted:
        print("checkpoints of a run with other parameters or data are removed")
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    found = sorted(checkpoints.glob("checkpoint-*"), key=_step, reverse=True)
    for folder in found:
        if _complete(folder):
            print(f"resuming at step {_step(folder)}, from {folder}")
            return str(folder)
        print(
            f"{folder.name} is incomplete (the run was cut while saving): passed over"
        )
    return None


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _complete(folder: Path) -> bool:
    """The trainer writes trainer_state.json last; the weights must be readable too."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "trainer_state.json").exists():
        return False
    weights = list(folder.glob("*.safetensors"))
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, SafetensorError):
        return False
    return bool(weights)


def save(trainer: Trainer, tokenizer: Tokenizer, folder: Path) -> None:
    """Save what was trained, the tokenizer with its template, and training_log.json.

    An older recipe in `folder` is removed first: until the new one is written, the
    folder counts as unfinished.
    """
    (folder / "recipe.json").unlink(missing_ok=True)
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and full of paths
    tokenizer.save_pretrained(folder)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (folder / "training_log.json").write_text(json.dumps(log, indent=1))


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove the checkpoints of a run whose result is saved."""
    shutil.rmtree(checkpoints, ignore_errors=True)
