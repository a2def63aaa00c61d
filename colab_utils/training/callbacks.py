"""Callbacks of the trainer: live plot, checkpoints by the clock, checks of numbers."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CheckFloat32(TrainerCallback):
    """Stop before the first step when a trainable parameter is not float32."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        wrong = [(n, p.dtype) for n, p in trainable if str(p.dtype) != "torch.float32"]
        if wrong:
            name, dtype = wrong[0]
            raise TypeError(
                f"{len(wrong)} trainable parameters are not float32 ({name} is "
                f"{dtype}): call training.float32_adapters(trainer) last."
            )


def check_finite(model: PreTrainedModel, step: int) -> None:
    """Raise FloatingPointError when something that is trained is no number any more."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and not torch.stack([p.isfinite().all() for p in trained]).all():
        raise _no_number("What is trained", step)


def _no_number(what: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} is no number any more at step {step}. Lower the learning rate, and "
        "look at the data with plots.trained_tokens."
    )


class CheckLoss(TrainerCallback):
    """Stop when the loss is no number, or 0, again and again, or the weights are none.

    Such a run would only burn the hour that is left. The trainer must log what is no
    number (logging_nan_inf_filter=False). Once or twice is no harm with 16-bit scaling,
    which leaves such a step out.
    """

    broken = zeros = 0  # logged losses in a row that are no number, or 0

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self.zeros = self.zeros + 1 if loss == 0 else 0
        self.broken = 0 if math.isfinite(loss) else self.broken + 1
        if self.broken:
            check_finite(model, state.global_step)
        if self.broken >= 3:
            raise _no_number("The loss", state.global_step)
        if self.zeros >= 3:
            raise FloatingPointError(
                f"The loss is 0 for the third time at step {state.global_step}: there "
                "is nothing to learn. Is any token trained on (plots.trained_tokens)?"
            )

    def on_train_end(self, args, state, control, model=None, **kwargs):
        check_finite(model, state.global_step)


class LivePlot(TrainerCallback):
    """The loss as a plot that grows while the model trains, with the time that is left.

    Replaces the trainer's own tables. Headless, it prints a line a tenth of the way and
    shows the finished plot only.
    """

    def __init__(self, every: float = 2.0) -> None:
        self.every = every  # seconds between two drawings
        self.drawn = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, self.first = time.time(), state.global_step
        self.tenths = self.first * 10 // state.max_steps
        self.handle = None  # another training is another plot

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        if runtime.headless():
            tenths = state.global_step * 10 // state.max_steps
            if tenths > self.tenths:
                self.tenths = tenths
                print(self._progress(state), flush=True)
        elif time.time() - self.drawn > self.every:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state)

    def _draw(self, state) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import display

        points = [(e["step"], e["loss"]) for e in state.log_history if "loss" in e]
        if not points:
            return
        figure, axes = plt.subplots(figsize=(7, 3))
        axes.plot(*zip(*points, strict=True), color="tab:blue", marker=".")
        axes.set(
            xlim=(0, state.max_steps), ylim=(0, None), xlabel="step", ylabel="loss"
        )
        axes.set_title(self._progress(state), loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        plt.close(figure)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.time()

    def _progress(self, state) -> str:
        done, spent = state.global_step - self.first, time.time() - self.began
        left = spent / max(done, 1) * (state.max_steps - state.global_step)
        loss = next(e["loss"] for e in reversed(state.log_history) if "loss" in e)
        ended = state.global_step == state.max_steps
        clock = f"{spent:.0f} s in all" if ended else f"{left:.0f} s left"
        return (
            f"step {state.global_step} of {state.max_steps}, loss {loss:.3f}, {clock}"
        )


class SaveEvery(TrainerCallback):
    """Save a checkpoint every so many minutes: what a disconnect can cost at most."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = time.time()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if time.time() - self.saved >= self.minutes * 60:
            check_finite(model, state.global_step)
            control.should_save = True
            self.saved = time.time()
