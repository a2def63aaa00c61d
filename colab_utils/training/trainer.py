"""Prepare a trainer: its precision, the fast path, and its live plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from colab_utils import runtime
from colab_utils.training.gradient_checkpointing import checkpoint_first, checkpointable

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, Trainer
    from trl.trainer.sft_config import SFTConfig

    from colab_utils.memory import Plan

T = TypeVar("T", bound="Trainer")


def model_of(trainer: Trainer) -> PreTrainedModel:
    """Return the trainer's model; a PeftModel has the attributes of its base model."""
    return cast("PreTrainedModel", trainer.model)


def precision() -> dict[str, bool]:
    """Return the keywords `fp16` and `bf16` of a trainer's config on this machine.

    {"fp16": True, "bf16": False} on a T4; both are False on a CPU.
    """
    dtype = runtime.detect().dtype
    return {"fp16": dtype == "float16", "bf16": dtype == "bfloat16"}


def settings(checkpoints: Path, plan: Plan, **more: Any) -> SFTConfig:
    """Return the settings of a trainer that packs rows as `memory.plan` decided.

    The learning rate rises over the first twentieth of the training, and falls to zero.
    Nothing is saved by steps: `show_progress` saves by minutes. `more` has the
    learning rate, the epochs and the seed, and may replace the others.
    """
    from trl.trainer.sft_config import SFTConfig

    gpu = runtime.detect().device == "cuda"
    usual: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": plan.accumulation,
        "packing": True,
        "max_length": plan.tokens,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.05,
        "gradient_checkpointing": False,  # the plan decides for each layer
        "optim": "adamw_8bit" if gpu else "adamw_torch",
        "logging_steps": 0.02,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": gpu,
        "use_cpu": not gpu,
    }
    return SFTConfig(**usual | precision() | more)


def float32_adapters(trainer: Trainer) -> None:
    """Cast every trainable parameter to float32, and check them before and after.

    TRL casts the adapters of a quantized model to bfloat16 while it builds the trainer;
    float16 loss scaling then fails at the first step. Call this after the trainer is
    built. When training begins, it raises TypeError for a dtype that was changed in
    between, and ValueError if the optimizer lacks a trainable parameter. When it ends,
    it raises RuntimeError if no weight has changed.
    """
    from colab_utils.training.callbacks import CheckWeights

    for parameter in model_of(trainer).parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.add_callback(CheckWeights())


def prepare_fast_path(config: LlamaConfig) -> None:
    """Start to compile the fast path's GPU kernels; call this before loading the model.

    On a CPU this does nothing.
    """
    from colab_utils import models
    from colab_utils.fast import warmup

    if warmup.prepare(config, models.torch_dtype(), training=True):
        print("compiling the fast path's kernels while the model is loaded")


def use_fast_path(trainer: Trainer, plan: Plan) -> None:
    """Train as `memory.plan` decided; `use_reference_path` undoes this.

    A Llama with LoRA runs on the fast path. Any other model stays on the reference
    path, and a printed line says why. There, the planned layers use gradient
    checkpointing, or all layers if the plan was for the fast path.

    Raises TypeError if the model could run on the fast path, but the trainer is not a
    `FastSFTTrainer`.
    """
    from colab_utils.fast import patch
    from colab_utils.training.sft import FastSFTTrainer

    use_reference_path(trainer)
    model = model_of(trainer)
    if isinstance(trainer, FastSFTTrainer):
        trainer.recovery.plan = plan
    saving = plan.recompute, plan.offload, plan.tiles, plan.disk
    if plan.fast and patch.apply(model, *saving):
        if not isinstance(trainer, FastSFTTrainer):
            patch.remove(model)
            raise TypeError(
                f"The fast path returns no logits, which {type(trainer).__name__} "
                "needs: build the trainer with training.sft.FastSFTTrainer."
            )
        trainer.fast_path = True
        return
    layers = len(checkpointable(model))
    recompute = layers if plan.fast else plan.recompute
    if recompute:
        checkpoint_first(model, recompute)
        print(
            f"reference path: gradient checkpointing for {recompute} of {layers} layers"
        )


def use_reference_path(trainer: Trainer) -> None:
    """Let the model compute as in transformers and PEFT, without checkpointing."""
    from colab_utils.fast import patch
    from colab_utils.training.sft import FastSFTTrainer

    model = model_of(trainer)
    patch.remove(model)
    if isinstance(trainer, FastSFTTrainer):
        trainer.fast_path, trainer.recovery.plan = False, None
    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


def show_progress(trainer: Trainer, save_minutes: float = 10) -> None:
    """Show a live plot instead of the trainer's own progress; save every few minutes.

    The last two checkpoints stay, unless the trainer's `save_total_limit` says
    otherwise. One that can't be saved does not end the training, and an interrupt saves
    one (`keeping.keep_work`). Training also stops, with FloatingPointError, when the
    loss or a weight is NaN.
    """
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from transformers.utils.notebook import NotebookProgressCallback

    from colab_utils.training.callbacks import CheckLoss, SaveEvery
    from colab_utils.training.keeping import keep_work
    from colab_utils.training.progress import LivePlot

    for kind in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(kind)
    if trainer.args.save_total_limit is None:
        trainer.args.save_total_limit = 2  # a Drive is soon full of checkpoints
    trainer.args.logging_nan_inf_filter = False  # or the trainer replaces NaN losses
    trainer.add_callback(CheckLoss())
    trainer.add_callback(LivePlot())
    trainer.add_callback(SaveEvery(save_minutes))
    keep_work(trainer)


def prepare(trainer: T, plan: Plan) -> T:
    """Make a trainer ready, and return it.

    Its adapter is kept in float32, its progress is shown and saved, and it computes as
    planned: see `float32_adapters`, `show_progress` and `use_fast_path`.
    """
    float32_adapters(trainer)
    show_progress(trainer)
    use_fast_path(trainer, plan)
    return trainer
