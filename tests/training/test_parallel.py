"""Training in two processes on a CPU (gloo) equals training in one."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from helpers.parallel import (
    AtStep,
    build,
    build_in_first,
    build_short_of_memory,
    build_with_slow_disk,
    start_warm,
)
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from colab_utils.training import checkpoints, parallel, process, watching

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def warm_processes(monkeypatch):
    """Fork the processes of a test from one with the libraries; `two` starts others."""
    spawning = importlib.import_module("torch.multiprocessing.spawn")
    monkeypatch.setattr(spawning, "start_processes", start_warm)


def losses(trainer) -> list[float]:
    return [e["loss"] for e in trainer.state.log_history if "loss" in e]


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]


def assert_equal(trainer, expected, tolerance: float) -> None:
    """Compare losses and weights, which differ by the order of float32 sums."""
    assert losses(trainer) == pytest.approx(losses(expected), abs=tolerance)
    for ours, theirs in zip(weights(trainer), weights(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A trainer that was trained in one process, with updates of four batches."""
    folder = tmp_path_factory.mktemp("one")
    trainer = build(folder, AtStep(2, "save"), gradient_accumulation_steps=4)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A trainer that was trained in two processes, and the metrics."""
    return in_two(tmp_path_factory.mktemp("two"), AtStep(2, "save"))


def in_two(folder, *callbacks, checkpoint=None, **settings):
    """Return a trainer that was trained in two processes, and the metrics."""
    trainer = build(folder, **settings)
    make = functools.partial(build, folder, *callbacks, **settings)
    return trainer, parallel.train(trainer, make, 2, checkpoint)


def saved(trainer) -> str:
    """Return the checkpoint of the second step, which is complete."""
    folder = Path(trainer.args.output_dir) / "checkpoint-2"
    assert checkpoints.is_complete(folder)
    return str(folder)


def test_two_processes_train_as_one_with_twice_the_accumulation(one, two):
    trainer, result = two
    assert_equal(trainer, one, 1e-4)
    assert result.global_step == one.state.global_step == trainer.state.max_steps
    assert result.metrics["peak_gib"] > 0


def test_one_process_resumes_what_two_have_saved(one, two, tmp_path):
    checkpoint = saved(two[0])
    names = {file.name for file in Path(checkpoint).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= names
    trainer = build(tmp_path, gradient_accumulation_steps=4)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert_equal(trainer, one, 1e-4)


def test_two_processes_resume_what_one_has_saved(one, tmp_path, headless, capsys):
    trainer, _ = in_two(tmp_path, checkpoint=saved(one))
    assert_equal(trainer, one, 1e-4)
    assert "step 6 of 6" in capsys.readouterr().out


def test_two_processes_with_uneven_batches_train_all_of_them(tmp_path):
    """The last batch of an epoch has no partner: the first one is repeated."""
    settings = {"rows": 60, "num_train_epochs": 1, "gradient_accumulation_steps": 1}
    trainer, result = in_two(tmp_path, **settings)
    batches = len(trainer.train_dataset)
    assert batches % 2 == 1
    assert result.global_step == (batches + 1) // 2


def test_state_is_read_only_when_it_is_whole(tmp_path):
    """The last one was not: one training in many stopped with a JSON error."""
    make = functools.partial(build_with_slow_disk, tmp_path)
    result = parallel.train(build(tmp_path, max_steps=2), make, 1)
    assert result.global_step == 2


def test_sharded_processes_resume_what_one_has_saved(one, tmp_path):
    """Their checkpoints and their result hold the adapter, without the base."""
    folder = tmp_path / "sharded"
    make = functools.partial(build, folder, AtStep(4, "save"), sharded=True)
    result = parallel.train_sharded(make, 2, saved(one))
    assert losses(result) == pytest.approx(losses(one), abs=1e-4)
    assert len(result.peaks_gib) == 2 and min(result.peaks_gib) > 0
    result.save_model(str(tmp_path / "adapter"))
    assert checkpoints.is_complete(folder / "checkpoint-4")
    expected = get_peft_model_state_dict(one.model)
    for place in (folder / "checkpoint-4", tmp_path / "adapter"):
        assert (place / "adapter_config.json").is_file()
        (file,) = place.glob("*.safetensors")
        found = load_file(file)
        assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def test_error_before_there_is_a_sharded_trainer(tmp_path):
    message = "Process 1 of 2 .* stopped: ValueError: planted before there is"
    with pytest.raises(RuntimeError, match=message):
        parallel.train_sharded(functools.partial(build_in_first, tmp_path), 2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise", "Process 1 of 2 .* stopped: ValueError: planted in the second"),
        ("kill", "Process 1 of 2 .* was killed by signal 9"),
    ],
)
def test_failure_of_a_process_stops_the_others(tmp_path, what, message):
    """They would wait for it half an hour."""
    with pytest.raises(RuntimeError, match=message):
        in_two(tmp_path, AtStep(1, what))
    assert not multiprocessing.active_children()


def test_process_that_runs_out_of_memory_stops_with_numbers(tmp_path):
    make = functools.partial(build_short_of_memory, tmp_path)
    message = r"Process 1 of 2 .*: MemoryError: RAM ran out in step 1: .*wait for the"
    with pytest.raises(RuntimeError, match=message):
        parallel.train(build(tmp_path), make, 2)
    assert not multiprocessing.active_children()


def test_interrupt_stops_all_processes(tmp_path, monkeypatch):
    """Jupyter's interrupt arrives while the notebook waits for the processes."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "_draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        in_two(tmp_path)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("weights", "message"),
    [("a", "trained 1 parameters, and the notebook's trainer has 84"), ("b", "differ")],
)
def test_result_of_other_processes_is_refused(one, tmp_path, weights, message):
    job = process.Job(tmp_path, 2, (), 0, None)
    save_file({"other": torch.zeros(1)}, tmp_path / process.WEIGHTS)
    for rank, digest in enumerate(["a", weights]):
        job.report(rank).write_text(json.dumps({"weights": digest}))
    with pytest.raises((RuntimeError, ValueError), match=message):
        parallel._take(one, job)


def test_usual_tokens_are_those_of_an_update_in_all_processes(one, monkeypatch):
    alone = one.usual_tokens
    monkeypatch.setattr(type(one.args), "world_size", 2)
    monkeypatch.delitem(vars(one), "usual_tokens")
    assert one.usual_tokens == pytest.approx(2 * alone, abs=1)
    vars(one)["usual_tokens"] = alone


@pytest.mark.parametrize(
    ("visible", "wanted", "found"),
    [("0,1", "auto", 2), ("0,1", 1, 1), ("2", "auto", 1), ("", "auto", 1), ("", 2, 2)],
)
def test_count_of_processes(monkeypatch, visible, wanted, found):
    monkeypatch.setenv("COURSE_GPUS", visible)
    assert parallel.count(wanted) == found


def test_count_refuses_more_than_there_are(monkeypatch):
    monkeypatch.setenv("COURSE_GPUS", "0,1")
    with pytest.raises(ValueError, match="GPUS = 3, but this machine has 2: set 2"):
        parallel.count(3)


@pytest.mark.parametrize(("visible", "wanted", "found"), [("", "auto", 2), ("", 3, 3)])
def test_count_of_processes_for_shards(monkeypatch, visible, wanted, found):
    monkeypatch.setenv("COURSE_GPUS", visible)
    assert parallel.count(wanted, sharded=True) == found


@pytest.mark.parametrize(
    ("visible", "wanted", "reason"),
    [
        ("0", "auto", "this machine has 1 GPU"),
        ("0,1", 1, "GPUS = 1"),
        ("", 1, "GPUS = 1"),
    ],
)
def test_count_refuses_one_process_for_shards(monkeypatch, visible, wanted, reason):
    monkeypatch.setenv("COURSE_GPUS", visible)
    with pytest.raises(ValueError, match=f"{reason}: choose a machine .* Kaggle's"):
        parallel.count(wanted, sharded=True)
