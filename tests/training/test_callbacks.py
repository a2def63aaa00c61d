from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from colab_utils import memory, training
from colab_utils.training import callbacks, progress


def play(plot, steps: int, every: int = 1) -> None:
    """Call a callback as the trainer does, over `steps` steps."""
    state = SimpleNamespace(global_step=0, max_steps=steps, log_history=[])
    plot.on_train_begin(None, state, None)
    for step in range(1, steps + 1):
        state.global_step = step
        if step % every == 0:
            logs = {"loss": 1 / step}
            state.log_history.append({"step": step, **logs})
            plot.on_log(None, state, None, logs=logs)
    plot.on_train_end(None, state, None)


@pytest.mark.parametrize(("steps", "every"), [(3, 1), (100, 1), (1000, 7)])
def test_live_plot_headless_prints_ten_lines_and_shows_one_figure(
    headless, capsys, monkeypatch, steps, every
):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda f, **_: shown.append(f))
    play(progress.LivePlot(), steps, every)
    lines = capsys.readouterr().out.splitlines()
    assert min(steps, 10) - 1 <= len(lines) <= 10
    assert all(line.startswith("step ") for line in lines)
    assert len(shown) == 1
    (line,) = shown[0].axes[0].lines
    assert list(line.get_xdata()) == list(range(every, steps + 1, every))
    assert line.get_marker() == "."  # or a single point would not be seen
    assert shown[0].axes[0].get_title(loc="left").endswith("s in all")
    assert [text.endswith("s left") for text in lines[:-1]] == [True] * (len(lines) - 1)


def test_live_plot_of_a_training_that_logs_no_loss_shows_nothing(
    headless, capsys, monkeypatch
):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda f, **_: shown.append(f))
    play(progress.LivePlot(), steps=20, every=21)
    assert capsys.readouterr().out == "" and shown == []


@pytest.mark.parametrize("loss", [0.5, -0.5])
def test_live_plot_shows_every_loss_and_zero_if_none_is_negative(loss, headless):
    points = [(1, loss), (2, loss / 2)]
    plot = progress.LivePlot()
    state = TrainerState(max_steps=2)
    plot.on_train_begin(None, state, None)
    state.global_step = 2
    state.log_history = [{"step": step, "loss": one} for step, one in points]
    low, high = plot._figure(state, points).axes[0].get_ylim()
    assert low <= min(loss, loss / 2) and max(loss, loss / 2) <= high
    assert (low == 0) == (loss > 0)


def test_live_plot_updates_one_figure(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HEADLESS", "0")
    shown, updated = [], []

    def display(figure, display_id):
        shown.append(figure)
        return SimpleNamespace(update=updated.append)

    monkeypatch.setattr("IPython.display.display", display)
    plot = progress.LivePlot(every=0)
    play(plot, 5)
    assert (len(shown), len(updated)) == (1, 5)  # five steps and the end
    title = updated[-1].axes[0].get_title(loc="left")
    assert title.startswith("step 5 of 5, loss 0.200")
    play(plot, 5)
    assert len(shown) == 2  # training again makes a new figure
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_check_loss_stops_when_a_weight_is_nan(make_trainer, headless):
    trainer = make_trainer("qlora", max_steps=50, logging_steps=2)
    training.float32_adapters(trainer)
    training.show_progress(trainer)
    break_a_weight(trainer)
    with pytest.raises(FloatingPointError, match=r"at step 2\. Lower the learning"):
        trainer.train()


def break_a_weight(trainer) -> None:
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.data[0, 0] = float("nan")


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 10])
def test_save_every_never_saves_nan(make_trainer, headless, tmp_path, minutes):
    """This also holds for a short run that logs no step."""
    short = {"max_steps": 3, "logging_steps": 5, "output_dir": str(tmp_path)}
    trainer = make_trainer("qlora", **short)
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=minutes)
    break_a_weight(trainer)
    step = 3 if minutes else 1
    with pytest.raises(FloatingPointError, match=rf"NaN or infinite at step {step}"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "logs",
    [
        {"loss": 0.0, "grad_norm": 0.0},
        {"loss": 2.0, "grad_norm": float("inf")},  # loss scaling finds its scale
        {"loss": 0.0},
        {"loss": float("nan")},  # and skips this step
        {"train_loss": float("nan")},
    ],
)
def test_check_loss_accepts_one_bad_loss(logs):
    state, model = SimpleNamespace(global_step=1), torch.nn.Linear(2, 2)
    callbacks.CheckLoss().on_log(None, state, None, logs=logs, model=model)


def test_check_loss_stops_at_the_third_nan_although_weights_are_finite():
    check, model = callbacks.CheckLoss(), torch.nn.Linear(2, 2)

    def log(loss: float, step: int) -> None:
        state = SimpleNamespace(global_step=step)
        check.on_log(None, state, None, logs={"loss": loss}, model=model)

    nan = float("nan")
    for step, loss in enumerate((nan, nan, 2.0, nan, float("inf"))):
        log(loss, step)
    with pytest.raises(
        FloatingPointError, match=r"The loss is NaN or infinite at step 5"
    ):
        log(nan, 5)


def test_check_loss_stops_at_the_third_0():
    check, state = callbacks.CheckLoss(), SimpleNamespace(global_step=7)
    for loss in (0.0, 0.0, 0.5, 0.0, 0.0):
        check.on_log(None, state, None, logs={"loss": loss, "grad_norm": 0.0})
    with pytest.raises(FloatingPointError, match=r"0 for the third time at step 7"):
        check.on_log(None, state, None, logs={"loss": 0.0, "grad_norm": 0.0})


@pytest.mark.slow
def test_save_every_saves_nothing_before_its_time(make_trainer, headless, tmp_path):
    trainer = make_trainer("qlora", output_dir=str(tmp_path))
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=10)
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.slow
def test_check_loss_stops_on_rows_without_trained_tokens(make_trainer, headless):
    rows = [{"input_ids": [1, 5, 6, 2], "labels": [-100] * 4}] * 8
    ready = {"assistant_only_loss": False, "max_steps": 8}
    ready["dataset_kwargs"] = {"skip_prepare_dataset": True}
    plan = memory.Plan(256, 1, 2, False, True, memory.Memory())
    trainer = make_trainer("qlora", rows=rows, **ready)
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, plan)
    training.show_progress(trainer)
    with pytest.raises(FloatingPointError, match=r"nothing to learn"):
        trainer.train()
