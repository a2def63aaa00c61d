"""Callbacks of a trainer: checks for NaN, and checkpoints by the clock."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from colab_utils.training import checkpoints

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class CheckWeights(TrainerCallback):
    """Check that training will change the trainable weights, and that it did."""

    def __init__(self) -> None:
        self.first_step, self.before = 0, torch.empty(0)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Raise TypeError for a trainable weight that is not float32.

        Raises ValueError if no weight is trainable, or one is not in the optimizer.
        """
        named = kwargs["model"].named_parameters()
        trainable = {name: p for name, p in named if p.requires_grad}
        wrong = {n: p.dtype for n, p in trainable.items() if p.dtype != torch.float32}
        if wrong:
            name = next(iter(wrong))
            raise TypeError(
                f"{len(wrong)} trainable parameters are not float32 ({name} is "
                f"{wrong[name]}): call training.float32_adapters(trainer) last."
            )
        groups = kwargs["optimizer"].param_groups
        held = {id(p) for group in groups for p in group["params"]}
        count = sum(id(p) in held for p in trainable.values())
        if not trainable or count < len(trainable):
            raise ValueError(
                f"The optimizer has {count} of {len(trainable)} trainable parameters. "
                "Load an adapter with is_trainable=True, and build the trainer again."
            )
        self.first_step, self.before = state.global_step, sums(kwargs["model"])

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Raise RuntimeError if the steps have changed no weight."""
        # A run that is resumed at its end makes one more step, with learning rate 0.
        steps = min(state.global_step, state.max_steps) - self.first_step
        if steps and torch.equal(sums(kwargs["model"]), self.before):
            raise RuntimeError(
                f"No trainable weight has changed in {steps} steps. Raise the learning "
                "rate. If float16's loss scaling skipped each step, train for longer."
            )


def sums(model: torch.nn.Module) -> torch.Tensor:
    """Return the sum of each trainable parameter in float64, which any step changes."""
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    return torch.stack([p.sum(dtype=torch.float64) for p in trained])


def check_finite(model: torch.nn.Module, step: int) -> None:
    """Raise FloatingPointError when a trainable parameter is NaN or infinite."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and not torch.stack([p.isfinite().all() for p in trained]).all():
        raise not_finite("A trained weight", step)


def not_finite(what: str, step: int) -> FloatingPointError:
    """Return the error for a loss or a weight that is NaN or infinite."""
    return FloatingPointError(
        f"{what} is NaN or infinite at step {step}. Lower the learning rate, and look "
        "at the data with plots.trained_tokens."
    )


class CheckLoss(TrainerCallback):
    """Stop when a weight is NaN, or the loss is NaN or 0 three times in a row.

    Such a run would only waste GPU time. Infinite counts as NaN. The trainer must log
    NaN as it is (logging_nan_inf_filter=False). One or two NaN losses are harmless with
    float16 loss scaling, which skips such a step.
    """

    def __init__(self) -> None:
        self.nans = self.zeros = 0  # consecutive logged losses that are NaN, or 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise FloatingPointError when the loss or a weight shows a failed run."""
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self.zeros = self.zeros + 1 if loss == 0 else 0
        self.nans = 0 if math.isfinite(loss) else self.nans + 1
        if self.nans:
            check_finite(kwargs["model"], state.global_step)
        if self.nans >= 3:
            raise not_finite("The loss", state.global_step)
        if self.zeros >= 3:
            raise FloatingPointError(
                f"The loss is 0 for the third time at step {state.global_step}: there "
                "is nothing to learn. Is any token trained on (plots.trained_tokens)?"
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Raise FloatingPointError when a weight is NaN or infinite."""
        check_finite(kwargs["model"], state.global_step)


class SaveEvery(TrainerCallback):
    """Save a checkpoint every few minutes: a disconnect loses at most this time.

    The first one is due after a minute, and so is another try when a save has failed.
    The last step saves if a minute is unsaved, before anything else can go wrong. It
    also records the hash of each file of a checkpoint, and writes the run's inputs.json
    again if somebody removed it. With several processes, the clock of the first one
    decides for all.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.first = minutes * 60, min(minutes * 60, 60)
        self.saved = self.wait = 0.0
        self.inputs: bytes | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Start the clock."""
        self.saved, self.wait = time.time(), self.first
        note = Path(str(args.output_dir)) / checkpoints.INPUTS
        self.inputs = note.read_bytes() if note.is_file() else None

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Complete the checkpoint that was saved, so that a later run recognizes it."""
        if args.world_size > 1:
            torch.distributed.barrier()  # each process writes a file of its own
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        checkpoint = folder / f"checkpoint-{state.global_step}"
        if not checkpoint.exists():  # `keep_work` has told why
            self.wait = self.first
            return
        if args.world_size > 1:  # with one process, `keep_work` has written them
            checkpoints.write_hashes(checkpoint)
        note = folder / checkpoints.INPUTS
        if self.inputs is not None and not note.exists():
            note.write_bytes(self.inputs)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask the trainer to save when it is time, and the weights are finite."""
        last = state.global_step >= state.max_steps
        wait = self.first if last else self.wait
        due = torch.tensor(time.time() - self.saved >= wait)
        if args.world_size > 1:
            due = due.to(args.device)
            torch.distributed.broadcast(due, src=0)
        if due:
            check_finite(kwargs["model"], state.global_step)
            control.should_save = True
            self.saved, self.wait = time.time(), self.seconds
