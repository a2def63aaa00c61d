"""Settings and callbacks for tests of training."""

from __future__ import annotations

import torch
from transformers import TrainerCallback

from colab_utils.training.reward_model import HeadTrainer, ScoreHead

ON_CPU = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "seed": 0,
}

# A few updates of eight rows, in two micro-batches each.
UPDATES = ON_CPU | {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
}


def random_head(outputs: int = 1, width: int = 192) -> ScoreHead:
    """Return a head of the demo model with small random weights."""
    head = ScoreHead(width, outputs)
    head.weight.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return head


def trained(trainer: HeadTrainer) -> dict[str, torch.Tensor]:
    """Return copies of the trained weights: the adapter's and the head's."""
    named = [*trainer.model.named_parameters(), ("head", trainer.head.weight)]
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


class StopAt(TrainerCallback):
    """Save after a step and stop, as if disconnected."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = (
            state.global_step == self.step
        )


ASKED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"


def cuda_error() -> None:
    """Raise the error of torch for a GPU without free memory."""
    raise torch.OutOfMemoryError(ASKED)


class InBackward:
    """Calls a function in some backward passes, when most layers have gradients.

    The passes are numbered from 1, also over several trainings.
    """

    def __init__(self, trainer, *numbers: int, error=cuda_error) -> None:
        self.numbers, self.error, self.passes = numbers, error, 0
        self.partial = 0  # gradients that the failed pass had written
        self.trainer = trainer
        named = trainer.model.named_parameters()
        first = next(p for _, p in named if p.requires_grad)
        first.register_hook(self.fail)

    def fail(self, _: torch.Tensor) -> None:
        self.passes += 1
        if self.passes in self.numbers:
            held = [p.grad for p in self.trainer.model.parameters()]
            self.partial = sum(grad is not None for grad in held)
            self.error()
