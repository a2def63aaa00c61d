"""Checkpoints that can't be written, disks without room, and interrupts."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from colab_utils import training
from colab_utils.training import callbacks, checkpoints, keeping

RUN = {"data": "abc", "epochs": 1}


class Before(TrainerCallback):
    """Do something before a step."""

    def __init__(self, **actions) -> None:
        self.actions = actions

    def on_step_begin(self, args, state, control, **kwargs):
        self.actions.get(f"step{state.global_step + 1}", int)()


@pytest.fixture
def begin(make_trainer, headless, tmp_path):
    """Build a trainer that saves after each step, unless `minutes` says otherwise."""

    def make(name: str = "run", minutes: float = 0, **actions):
        folder = tmp_path / name
        trainer = make_trainer("qlora", max_steps=4, output_dir=str(folder))
        training.float32_adapters(trainer)
        training.show_progress(trainer, save_minutes=minutes)
        trainer.add_callback(Before(**actions))
        point = training.resume_point(folder, RUN)
        return trainer, folder, point

    return make


def names(folder) -> list[str]:
    return [one.name for one in checkpoints.numbered(folder)]


def adapter(trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


@pytest.fixture
def limit_files():
    """Let the kernel refuse to write files beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2e5, 9e5], ids=["adapter", "optimizer"])
def test_training_goes_on_when_a_file_of_a_checkpoint_cannot_be_written(
    begin, limit_files, capsys, size
):
    """The adapter has 0.7 MB, the optimizer 1.4 MB."""
    whole, *_ = begin("whole")
    whole.train()
    capsys.readouterr()
    trainer, folder, _ = begin(
        step2=lambda: limit_files(int(size)),
        step4=lambda: limit_files(resource.RLIM_INFINITY),
    )
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("could not be saved") == 2
    assert "The checkpoint of step 2 could not be saved in" in out
    assert "the newest is checkpoint-1. The training goes on" in out
    assert names(folder) == ["checkpoint-1", "checkpoint-4"]
    assert training.resume_point(folder, RUN) == str(folder / "checkpoint-4")
    expected = adapter(whole)
    found = adapter(trainer)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_training_goes_on_when_the_folder_cannot_be_made(begin, capsys):
    trainer, folder, _ = begin()

    def block() -> None:
        shutil.rmtree(folder)
        folder.write_text("a file is in its place")

    def unblock() -> None:
        folder.unlink()

    trainer.add_callback(Before(step2=block, step3=unblock))
    trainer.train()
    assert "The checkpoint of step 2 could not be saved" in capsys.readouterr().out
    assert names(folder) == ["checkpoint-3", "checkpoint-4"]
    assert training.resume_point(folder, RUN) == str(folder / "checkpoint-4")


@pytest.mark.slow
def test_other_errors_while_saving_are_raised(begin, monkeypatch):
    trainer, *_ = begin()

    def fail() -> None:
        monkeypatch.setattr(torch, "save", lambda *_: torch.zeros(2) @ torch.zeros(3))

    trainer.add_callback(Before(step2=fail))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.train()


@pytest.mark.slow
def test_oldest_checkpoint_goes_when_room_is_short(begin, monkeypatch, capsys):
    trainer, folder, _ = begin()

    def fill() -> None:
        free = SimpleNamespace(free=keeping.size(trainer) - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)

    trainer.add_callback(Before(step3=fill))
    trainer.train()
    assert names(folder) == ["checkpoint-3", "checkpoint-4"]
    assert "checkpoint-1 is removed before the next" in capsys.readouterr().out


@pytest.mark.slow
def test_run_that_has_ended_is_loaded_from_its_last_checkpoint(begin):
    trainer, folder, _ = begin()
    trainer.train()
    assert names(folder) == ["checkpoint-3", "checkpoint-4"]  # the last two stay
    again, _, point = begin()
    assert point == str(folder / "checkpoint-4")
    expected = adapter(trainer)
    assert not all(
        torch.equal(adapter(again)[name], expected[name]) for name in expected
    )
    again.train(resume_from_checkpoint=point)
    found = adapter(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_size_is_that_of_a_checkpoint(begin):
    planned = []
    trainer, folder, _ = begin(step1=lambda: planned.append(keeping.size(trainer)))
    trainer.train()
    found = sum(file.stat().st_size for file in (folder / "checkpoint-4").iterdir())
    assert keeping.size(trainer) - keeping.REST < found < keeping.size(trainer)
    assert planned == [pytest.approx(keeping.size(trainer), rel=1e-3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoints", "told"), [(0.5, "0.05 GiB are missing"), (1.5, "0.02"), (2.1, "")]
)
def test_missing_space_is_told_before_the_first_step(
    begin, monkeypatch, capsys, checkpoints, told
):
    trainer, folder, _ = begin(minutes=10)
    trainer.create_optimizer()
    one = keeping.size(trainer)
    free = SimpleNamespace(free=int(checkpoints * one))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    trainer.train()
    assert trainer.state.global_step == 4
    before, _, _ = capsys.readouterr().out.partition("step 1 of 4")
    assert (f"2 x {one / 2**30:.2f} GiB, and {folder} has" in before) is bool(told)
    assert told in before


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interruptible():
    """A background process may ignore SIGINT; then give it Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_interrupt_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    begin, interruptible, capsys
):
    whole, *_ = begin("whole", minutes=10)
    whole.train()
    cut, folder, _ = begin(minutes=10, step2=interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert "Stopping after this step, with a checkpoint." in capsys.readouterr().out
    assert cut.state.global_step == 2 and names(folder) == ["checkpoint-2"]
    resumed, _, point = begin(minutes=10)
    assert point == str(folder / "checkpoint-2")
    resumed.train(resume_from_checkpoint=point)
    expected, found = adapter(whole), adapter(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_second_interrupt_stops_at_once(begin, interruptible):
    def twice() -> None:
        interrupt()
        interrupt()

    trainer, folder, _ = begin(minutes=10, step2=twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1 and names(folder) == []


@pytest.mark.slow
def test_interrupt_acts_as_usual_after_a_training_that_fails(begin, interruptible):
    trainer, *_ = begin(step2=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.slow
def test_training_in_another_thread(begin, interruptible):
    trainer, folder, _ = begin()
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert names(folder)[-1] == "checkpoint-4"


@pytest.mark.parametrize(
    ("minutes", "lasts", "saves"),
    [
        (10, 75, [1, 9, 16]),  # at once, then ten minutes later, then at the end
        (10, 20, [3, 16]),
        (10, 2, []),  # less than a minute in all
        (0.5, 20, [2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
def test_checkpoints_are_due(monkeypatch, tmp_path, minutes, lasts, saves):
    """Sixteen steps of `lasts` seconds."""
    clock, found = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(callbacks.time, "time", lambda: clock.now)
    args = SimpleNamespace(output_dir=str(tmp_path), world_size=1)
    every, model = callbacks.SaveEvery(minutes), torch.nn.Linear(1, 1)
    every.on_train_begin(args, SimpleNamespace(), SimpleNamespace())
    for step in range(1, 17):
        clock.now += lasts
        control = SimpleNamespace(should_save=False)
        state = SimpleNamespace(
            global_step=step, max_steps=16, is_world_process_zero=True
        )
        every.on_step_end(args, state, control, model=model)
        if control.should_save:
            found.append(step)
            (tmp_path / f"checkpoint-{step}").mkdir()
            every.on_save(args, state, control)
    assert found == saves


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_disk_that_disappears_around_a_save_is_not_made_anew(
    begin, tmp_path, monkeypatch, when
):
    """`save` creates missing folders: the run reported a success that was lost."""
    disk, away = tmp_path / "disk", tmp_path / "away"
    disk.mkdir()
    trainer, folder, _ = begin("disk/adapters/run")
    write = trainer.save_model

    def vanish(at: str) -> None:
        if at == when and trainer.state.global_step == 2:
            disk.rename(away)

    def save(*args, **given):
        vanish("before")
        write(*args, **given)
        vanish("within")

    hashes = checkpoints.write_hashes
    monkeypatch.setattr(trainer, "save_model", save)
    monkeypatch.setattr(
        checkpoints, "write_hashes", lambda one: (hashes(one), vanish("after"))
    )
    trainer.train()
    assert not disk.exists()
    with pytest.raises(FileNotFoundError, match="Is the disk"):
        training.save(trainer, trainer.processing_class, folder.parent / "adapter")
    away.rename(disk)
    whole = [o.name for o in checkpoints.numbered(folder) if checkpoints.is_complete(o)]
    assert whole == ["checkpoint-1"] + ["checkpoint-2"] * (when == "after")
    assert not (folder / "README.md").exists()  # TRL's card would bring back folders
    training.save(trainer, trainer.processing_class, folder.parent / "adapter")
