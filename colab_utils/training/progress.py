"""The progress of a training: a live plot, or a file that another process reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from colab_utils import runtime

if TYPE_CHECKING:
    from IPython.display import DisplayHandle
    from matplotlib.figure import Figure
    from transformers import TrainerControl, TrainerState, TrainingArguments


class LivePlot(TrainerCallback):
    """A plot of the loss that is updated during training, with the time left.

    It replaces the trainer's own tables. In a headless run it prints ten lines and
    shows the finished plot.
    """

    def __init__(self, every: float = 2.0) -> None:
        self.every = every  # seconds between two updates
        self.drawn = self.began = 0.0
        self.first_step = self.tenths = 0
        self.handle: DisplayHandle | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begin a new plot."""
        self.begin(state)

    def begin(self, state: TrainerState) -> None:
        """Begin a new plot of a training that is at this state."""
        self.began, self.first_step = time.time(), state.global_step
        self.tenths = self.first_step * 10 // state.max_steps
        self.handle = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Update the plot; if headless, print a line after each tenth of the steps."""
        if "loss" in (logs or {}):
            self.show(state)

    def show(self, state: TrainerState, last: bool = False) -> None:
        """Show a state; in a headless run only each tenth of the steps, as a line.

        A training may log no loss; then there is nothing to show.
        """
        if not any("loss" in entry for entry in state.log_history):
            return
        if runtime.headless():
            tenths = state.global_step * 10 // state.max_steps
            if tenths > self.tenths:
                self.tenths = tenths
                print(self._progress(state), flush=True)
        if last or (not runtime.headless() and time.time() - self.drawn > self.every):
            self._draw(state)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show the finished plot."""
        self.show(state, last=True)

    def _draw(self, state: TrainerState) -> None:
        from IPython.display import display

        points = [(e["step"], e["loss"]) for e in state.log_history if "loss" in e]
        figure = self._figure(state, points)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.time()

    def _figure(self, state: TrainerState, points: list[tuple[float, float]]) -> Figure:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 3))
        axes.plot(*zip(*points, strict=True), color="tab:blue", marker=".")
        axes.set(xlim=(0, state.max_steps), xlabel="step", ylabel="loss")
        if min(loss for _, loss in points) >= 0:  # losses with rewards may be negative
            axes.set_ylim(bottom=0)
        axes.set_title(self._progress(state), loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        plt.close(figure)
        return figure

    def _progress(self, state: TrainerState) -> str:
        done, spent = state.global_step - self.first_step, time.time() - self.began
        left = spent / max(done, 1) * (state.max_steps - state.global_step)
        loss = next(e["loss"] for e in reversed(state.log_history) if "loss" in e)
        ended = state.global_step == state.max_steps
        clock = f"{spent:.0f} s in all" if ended else f"{left:.0f} s left"
        return (
            f"step {state.global_step} of {state.max_steps}, loss {loss:.3f}, {clock}"
        )


class WriteState(TrainerCallback):
    """Write the trainer's state to a file whenever a loss is logged."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write the state before the first step, which has the number of steps."""
        write_state(state, self.file)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the state with its newest loss."""
        write_state(state, self.file)


def write_state(state: TrainerState, file: Path) -> None:
    """Write a trainer's state to a file, which another process may read meanwhile."""
    part = file.with_suffix(".part")
    state.save_to_json(str(part))
    part.replace(file)  # the reader sees the old state or the new one, never a half
