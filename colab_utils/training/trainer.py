"""What keeps a training run safe and visible: precision, resume, progress."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime, workspace

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, Trainer
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.memory.planning import Plan


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
    from colab_utils.training.callbacks import CheckFloat32

    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.add_callback(CheckFloat32())


def prepare_fast_path(config: LlamaConfig) -> None:
    """Begin to compile the fast path's GPU kernels; call it before the model is loaded.

    On a CPU there is nothing to compile.
    """
    from colab_utils import models
    from colab_utils.fast import warmup as compiling

    if compiling.prepare(config, models.torch_dtype(), training=True):
        print("the fast path's kernels are compiled while the model is loaded")


def use_fast_path(trainer: Trainer, plan: Plan) -> None:
    """Train as `memory.plan` said; `use_plain_path` undoes it.

    Llama with LoRA runs on the fast path (`kernels`). Any other model stays on
    transformers' own, and a line says why; then its planned layers are recomputed, or
    all of them where the plan counted on the fast path.
    """
    from colab_utils.fast import patch as kernels

    use_plain_path(trainer)
    model = trainer.model
    if plan.fast and kernels.apply(model, plan.recompute, plan.offload):
        _expect_no_logits(trainer)
        return
    layers = _checkpointable(model)
    recompute = len(layers) if plan.fast else plan.recompute
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for i, layer in enumerate(layers):
            layer.gradient_checkpointing = i < recompute
        print(f"plain path: {recompute} of {len(layers)} layers are recomputed")


def use_plain_path(trainer: Trainer) -> None:
    """Compute as transformers and PEFT wrote it, with nothing recomputed."""
    from colab_utils.fast import patch as kernels

    model = trainer.model
    kernels.remove(model)
    vars(trainer).pop("compute_loss", None)
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


def _expect_no_logits(trainer: Trainer) -> None:
    """TRL reads logits after each step, unless Liger's kernels run: they have none."""
    plain = trainer.compute_loss

    def compute_loss(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        trainer.args.use_liger_kernel = model.training
        try:
            return plain(model, *args, **kwargs)
        finally:  # at the start of training the real ones would be put in
            trainer.args.use_liger_kernel = False

    trainer.compute_loss = compute_loss


def _checkpointable(model: PreTrainedModel) -> list:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def show_progress(trainer: Trainer, save_minutes: float = 10) -> None:
    """Show the live plot instead of the trainer's own progress, and save by minutes.

    Training also stops, with FloatingPointError, when the loss is no number any more.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.utils.notebook import NotebookProgressCallback

    from colab_utils.training.callbacks import CheckLoss, LivePlot, SaveEvery

    for kind in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(kind)
    trainer.args.logging_nan_inf_filter = False  # else a loss of NaN is averaged away
    trainer.add_callback(CheckLoss())
    trainer.add_callback(LivePlot())
    trainer.add_callback(SaveEvery(save_minutes))


def resume_point(checkpoints: Path, made_from: dict[str, Any]) -> str | None:
    """The newest complete checkpoint of the same run, or None to begin at the start.

    `made_from` says what the run is made from (data hash, method, rank, ...).
    Checkpoints of another run are removed, half-written ones passed over; both are told
    in a line.
    """
    mark = checkpoints / "made_from.json"
    wanted = json.dumps(made_from, indent=2, sort_keys=True)
    found = sorted(_numbered(checkpoints), key=_step, reverse=True)
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        if found:
            print("checkpoints of a run with other parameters or data are removed")
        for folder in found:
            workspace.discard(folder)
        found = []
        checkpoints.mkdir(parents=True, exist_ok=True)
        mark.write_text(wanted, encoding="utf-8")
    for folder in found:
        if _complete(folder):
            print(f"resuming at step {_step(folder)}, from {folder}")
            return str(folder)
        print(f"{folder.name} is incomplete (cut while saving): passed over")
    return None


def _numbered(checkpoints: Path) -> list[Path]:
    names = checkpoints.glob("checkpoint-*")
    return [name for name in names if re.fullmatch(r"checkpoint-\d+", name.name)]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _complete(folder: Path) -> bool:
    """Whether all that resuming needs is there, and every file to its end."""
    files = [file for file in folder.iterdir() if file.is_file()]
    names = {file.name for file in files}
    needed = {"trainer_state.json", "optimizer.pt", "scheduler.pt"} <= names
    return (
        needed
        and any(name.endswith(".safetensors") for name in names)
        and all(map(_whole, files))
    )


def _whole(file: Path) -> bool:
    """Whether a file of a checkpoint was written to its end."""
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


def save(trainer: Trainer, tokenizer: Tokenizer, folder: Path) -> None:
    """Save what was trained, the tokenizer with its template, and training_log.json.

    What an older run left in `folder` is removed first: an old adapter beside a new
    model would be loaded with it, and without a recipe the folder counts as unfinished.
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
