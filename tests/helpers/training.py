"""Callbacks for tests of training."""

from __future__ import annotations

from transformers import TrainerCallback


class StopAt(TrainerCallback):
    """Save after a step and stop, as if disconnected."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = (
            state.global_step == self.step
        )
