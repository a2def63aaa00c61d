"""Callbacks of the trainer: live plot, checkpoints by the clock, checks of numbers."""

from __future__ import annotations

import math
import time

from transformers import TrainerCallback

from colab_utils import runtime


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


class CheckLoss(TrainerCallback):
    """Stop when the loss is no number any more, or 0 again and again.

    Such a run would only burn the hour that is left.
    """

    zeros = 0  # logged losses of 0 in a row

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss, norm = (logs or {}).get("loss"), (logs or {}).get("grad_norm", 0.0)
        # The trainer logs a loss of 0 for steps without a number; with 16-bit scaling
        # the gradient alone may overflow now and then, and that step is left out.
        broken = loss is not None and not math.isfinite(loss)
        if broken or (loss == 0 and not math.isfinite(norm)):
            raise FloatingPointError(
                f"The loss is no number any more at step {state.global_step}. Lower "
                "the learning rate, and look at the data with plots.trained_tokens."
            )
        if loss is not None:
            self.zeros = self.zeros + 1 if loss == 0 else 0
        if self.zeros >= 3:
            raise FloatingPointError(
                f"The loss is 0 for the third time at step {state.global_step}: there "
                "is nothing to learn. Is any token trained on (plots.trained_tokens)?"
            )


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

    def on_step_end(self, args, state, control, **kwargs):
        if time.time() - self.saved >= self.minutes * 60:
            control.should_save = True
            self.saved = time.time()
