from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.training import StopAt
from transformers import TrainerCallback

from colab_utils import training
from colab_utils.training.checkpoints import is_complete, write_hashes

RUN = {
    "data": "abc",
    "model": "some/model",
    "weights": "w",
    "rank": 8,
    "rate": 1e-3,
    "seed": 0,
    "tokens": 100,
    "accumulation": 4,
    "epochs": 1,
}


def checkpoint(parent: Path, step: int) -> Path:
    """Write a checkpoint as the trainer does: weights, optimizer, state."""
    from safetensors.torch import save_file

    folder = parent / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(64)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 8}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(64)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    return folder


@pytest.fixture
def saved(tmp_path):
    """Two complete checkpoints of the run `RUN`, steps 9 and 10."""
    folder = tmp_path / "checkpoints"
    assert training.resume_point(folder, RUN) is None
    return folder, checkpoint(folder, 9), checkpoint(folder, 10)


def test_resume_point_is_the_newest_by_number(saved, capsys):
    folder, _, newest = saved
    assert training.resume_point(folder, RUN) == str(newest)
    assert f"resuming at step 10, from {newest}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_resume_point_skips_a_checkpoint_with_a_truncated_file(
    saved, name, kept, capsys
):
    folder, older, newest = saved
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: int(len(content) * kept)])
    assert training.resume_point(folder, RUN) == str(older)
    assert "skipping checkpoint-10: it is incomplete" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_resume_point_skips_a_checkpoint_with_a_changed_byte(saved, name):
    folder, older, newest = saved
    for point in (older, newest):
        write_hashes(point)
    assert training.resume_point(folder, RUN) == str(newest)
    content = bytearray((newest / name).read_bytes())
    content[-300] ^= 1
    (newest / name).write_bytes(content)
    assert training.resume_point(folder, RUN) == str(older)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"]
)
def test_resume_point_skips_a_checkpoint_without_a_file(saved, name):
    folder, older, newest = saved
    (newest / name).unlink()
    assert training.resume_point(folder, RUN) == str(older)


def test_resume_point_ignores_other_names_and_empty_folders(saved):
    folder, _, newest = saved
    for name in ("checkpoint-foo", "checkpoint-", "checkpoint-11", "checkpoint-1x"):
        (folder / name).mkdir()
    assert training.resume_point(folder, RUN) == str(newest)


def test_resume_point_without_a_complete_checkpoint_is_none(tmp_path):
    training.resume_point(tmp_path, RUN)
    (tmp_path / "checkpoint-5").mkdir()
    assert training.resume_point(tmp_path, RUN) is None


def set_aside(parent: Path) -> Path:
    """Return the one folder of checkpoints that was set aside in `parent`."""
    (found,) = parent.glob("checkpoints.*")
    assert re.fullmatch(r"checkpoints\.\d{4}-\d\d-\d\d_\d{4}", found.name)
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 16}, "rank was 8 and is 16"),
        ({"rate": 2e-3}, "rate was 0.001 and is 0.002"),
        ({"data": "f" * 64}, "data was abc and is ffffffff..."),
        ({"weights": "other"}, "weights was w and is other"),
        ({"tokens": 300}, "tokens was 100 and is 300"),
        ({"accumulation": 3}, "accumulation was 4 and is 3"),
        ({"epochs": 2, "seed": 1}, "seed was 0 and is 1"),
    ],
)
def test_resume_point_keeps_the_checkpoints_of_another_run(saved, capsys, change, said):
    folder, *points = saved
    (folder / "notes.txt").write_text("mine")
    assert training.resume_point(folder, RUN | change) is None
    text = capsys.readouterr().out
    kept = set_aside(folder.parent)
    assert f"of a run with other inputs: {said}. Nothing is deleted" in text
    assert f"renamed to {kept.name}" in text
    assert re.search(r"has 1 such folder, 0\.\d\d GiB\. Delete those", text)
    for point in points:
        assert is_complete(kept / point.name)
    assert (kept / "notes.txt").read_text() == "mine"
    # From now on the folder belongs to the new run, and the old one can be resumed.
    new = checkpoint(folder, 3)
    assert training.resume_point(folder, RUN | change) == str(new)
    assert training.resume_point(kept, RUN) == str(kept / "checkpoint-10")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 1.0}, ""),
        ({"epochs": 3}, "epochs was 1 and is 3: the learning rate of the remaining"),
        (
            {"tokens": 400, "accumulation": 1},
            "was 100 and is 400. Rows are",
        ),
        (
            {"tokens": 134, "accumulation": 3},
            "was 100 and is 134. Rows are",
        ),
        ({"model": "a mirror with the same weights"}, ""),
        ({"not recorded": 1}, ""),
    ],
)
def test_resume_point_resumes_although_an_input_differs(saved, capsys, change, said):
    folder, _, newest = saved
    assert training.resume_point(folder, RUN | change) == str(newest)
    text = capsys.readouterr().out
    assert said in text if said else len(text.splitlines()) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoints"]
    # The next start compares with the new inputs.
    assert training.resume_point(folder, RUN | change) == str(newest)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("trained", [False, True])
def test_resume_point_brings_back_what_was_set_aside(saved, capsys, trained):
    """A mistyped parameter costs nothing, even if that run saved a checkpoint."""
    folder, *points = saved
    mistyped = RUN | {"rank": 80}
    assert training.resume_point(folder, mistyped) is None
    if trained:
        checkpoint(folder, 3)
    assert training.resume_point(folder, RUN) == str(folder / "checkpoint-10")
    assert "has checkpoints of this run: it is checkpoints again" in (
        capsys.readouterr().out
    )
    assert all(is_complete(point) for point in points)
    assert len(list(folder.parent.iterdir())) == 1 + trained
    if trained:
        assert training.resume_point(folder, mistyped) == str(folder / "checkpoint-3")


def test_resume_point_brings_nothing_back_over_a_file(saved):
    folder, *_ = saved
    training.resume_point(folder, RUN | {"rank": 80})
    (folder / "inputs.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert training.resume_point(folder, RUN) is None
    assert (folder / "notes.txt").read_text() == "mine"
    assert is_complete(set_aside(folder.parent) / "checkpoint-10")


@pytest.mark.parametrize("epochs", [0.5, 0.75])
def test_resume_point_with_fewer_epochs_than_trained(saved, capsys, epochs):
    folder, _, newest = saved
    (newest / "trainer_state.json").write_text('{"epoch": 0.75}')
    assert training.resume_point(folder, RUN | {"epochs": epochs}) is None
    said = f"have trained 0.75 epochs already, and epochs = {epochs:g} now"
    assert said in capsys.readouterr().out
    assert is_complete(set_aside(folder.parent) / newest.name)


def test_resume_point_of_an_earlier_version_compares_the_models_name(saved, capsys):
    """Version 0.2.0 recorded no hash of the weights."""
    folder, _, newest = saved
    old = {name: value for name, value in RUN.items() if name != "weights"}
    (folder / "inputs.json").write_text(json.dumps(old))
    assert training.resume_point(folder, RUN) == str(newest)
    (folder / "inputs.json").write_text(json.dumps(old))
    assert training.resume_point(folder, RUN | {"model": "another"}) is None
    assert "model was some/model and is another" in capsys.readouterr().out
    assert is_complete(set_aside(folder.parent) / newest.name)


@pytest.mark.parametrize("note", [None, '{"data": "ab', "[]", "{}", '{"x": 1}'])
def test_resume_point_without_readable_inputs_keeps_the_checkpoints(
    saved, capsys, note
):
    folder, _, newest = saved
    (folder / "inputs.json").unlink()
    if note is not None:
        (folder / "inputs.json").write_text(note)
    assert training.resume_point(folder, RUN) is None
    assert "of an unknown run: inputs.json is missing" in capsys.readouterr().out
    assert is_complete(set_aside(folder.parent) / newest.name)


def test_resume_point_sets_several_runs_aside_in_a_minute(saved, capsys):
    folder, *_ = saved
    for rank in range(1, 4):
        training.resume_point(folder, RUN | {"rank": rank})
        checkpoint(folder, 1)
    assert len(list(folder.parent.glob("checkpoints.*"))) == 3
    assert "now has 3 such folders" in capsys.readouterr().out


def adapter_of(trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


def tokens_of(trainer) -> list[float]:
    """Return the count of trained tokens after each step."""
    log = trainer.state.log_history
    return [entry["num_tokens"] for entry in log if "loss" in entry]


@pytest.mark.slow
def test_resumed_run_ends_as_an_uninterrupted_one(make_trainer, tmp_path):
    def begin(name: str):
        trainer = make_trainer("qlora", max_steps=6, output_dir=str(tmp_path / name))
        training.float32_adapters(trainer)
        return trainer

    whole = begin("whole")
    first = adapter_of(whole)
    whole.train()
    expected = adapter_of(whole)

    cut = begin("cut")
    training.resume_point(tmp_path / "cut", RUN)
    cut.add_callback(StopAt(3))
    cut.train()
    assert cut.state.global_step == 3

    resumed = begin("cut")
    point = training.resume_point(tmp_path / "cut", RUN)
    assert point == str(tmp_path / "cut" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=point)
    assert resumed.state.global_step == 6
    trained = [p for p in resumed.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    found = adapter_of(resumed)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)
    assert tokens_of(resumed) == tokens_of(whole)
    # The comparison is meaningful: the second half of the run moved the adapter.
    halfway = adapter_of(cut)
    difference = max((halfway[n] - expected[n]).abs().max().item() for n in expected)
    assert difference > 1e-4
    assert first.keys() == expected.keys()


@pytest.mark.slow
def test_save_removes_the_files_of_an_earlier_run(trained, tokenizer, tmp_path):
    lora, full = trained["lora"][0], trained["full"][0]
    training.save(lora, tokenizer, tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    checkpoint(tmp_path / "checkpoints", 3)
    training.save(full, tokenizer, tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert {"adapter_config.json", "adapter_model.safetensors"}.isdisjoint(names)
    assert {"recipe.json", "training_args.bin"}.isdisjoint(names)
    assert (tmp_path / "checkpoints" / "checkpoint-3" / "optimizer.pt").exists()


@pytest.mark.slow
def test_save_that_fails_keeps_the_earlier_result(trained, tokenizer, tmp_path):
    folder = tmp_path / "mine"
    training.save(trained["lora"][0], tokenizer, folder)
    (folder / "recipe.json").write_text("old")
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def fail(new: Path) -> None:
        assert new.name == "mine" and (new / "model.safetensors").exists()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        training.save(trained["full"][0], tokenizer, folder, fail)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_save_says_how_much_space_is_missing(trained, tokenizer, tmp_path, monkeypatch):
    trainer, _ = trained["lora"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**19))
    with pytest.raises(OSError, match=r"lora needs 0\.7 MiB, .* has 0\.5 MiB free"):
        training.save(trainer, tokenizer, tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_save_writes_the_sets_of_a_config_in_order(trained):
    """Else two equal runs differ: Python orders a set anew in each process."""
    config = json.loads((trained["qlora"][1] / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert len(config["target_modules"]) == 7


def test_save_keeps_the_readers_files(trained, tokenizer, tmp_path):
    folder = tmp_path / "mine"
    kept = {
        "notes.txt",
        "results.json",
        "training_notes.md",
        "checkpoints.2026-11-25_2130/inputs.json",
    }
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    training.save(trained["lora"][0], tokenizer, folder)
    training.save(trained["lora"][0], tokenizer, folder)
    assert {name for name in kept if (folder / name).read_text() == "mine"} == kept


def test_save_writes_the_log_of_the_loss(trained):
    trainer, folder = trained["qlora"]
    log = json.loads((folder / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2]
    assert log[0]["loss"] == trainer.state.log_history[0]["loss"] > 1


@pytest.mark.slow
def test_remove_checkpoints_after_saving_by_the_clock(make_trainer, headless, tmp_path):
    kept = {"max_steps": 3, "save_total_limit": 2}
    trainer = make_trainer("qlora", output_dir=str(tmp_path), **kept)
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=0)
    training.resume_point(tmp_path, RUN)
    trainer.train()
    steps = {folder.name for folder in tmp_path.glob("checkpoint-*")}
    assert steps == {"checkpoint-2", "checkpoint-3"}
    assert training.resume_point(tmp_path, RUN) == str(tmp_path / "checkpoint-3")
    assert all((tmp_path / step / "sha256.json").exists() for step in steps)
    training.remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_run_is_recognized_after_a_removal_that_was_cut_short(tmp_path, monkeypatch):
    """Else the rest would be set aside, as of an unknown run, and stay for ever."""
    folder, delete, ended = tmp_path / "checkpoints", os.unlink, False

    def cut(*args, **given) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        delete(*args, **given)

    for number in itertools.count(1):
        training.resume_point(folder, RUN)
        for step in (1, 2):
            checkpoint(folder, step)
        left = number
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", cut)
            try:
                training.remove_checkpoints(folder)
                ended = True
            except KeyboardInterrupt:
                pass
        training.resume_point(folder, RUN)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
        shutil.rmtree(folder)
        if ended:
            break
    assert number > 12  # files


@pytest.mark.slow
def test_resume_after_the_folder_was_removed_during_training(
    make_trainer, headless, tmp_path
):
    """The trainer makes the folder anew; the run is still recognized."""
    folder = tmp_path / "checkpoints"
    trainer = make_trainer("qlora", max_steps=4, output_dir=str(folder))
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=0)
    training.resume_point(folder, RUN)

    class Remove(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                shutil.rmtree(folder)

    trainer.add_callback(Remove())
    trainer.train()
    assert training.resume_point(folder, RUN) == str(folder / "checkpoint-4")
