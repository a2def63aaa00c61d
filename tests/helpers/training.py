"""Settings and callbacks for tests of training."""

from __future__ import annotations

from transformers import TrainerCallback

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


class StopAt(TrainerCallback):
    """Save after a step and stop, as if disconnected."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = (
            state.global_step == self.step
        )
