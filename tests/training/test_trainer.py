from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from colab_utils import runtime
from colab_utils.memory import planning as memory
from colab_utils.training import callbacks
from colab_utils.training import trainer as training


def dtypes(trainer) -> set[torch.dtype]:
    return {p.dtype for p in trainer.model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("dtype", "fp16", "bf16"),
    [
        ("float16", True, False),
        ("bfloat16", False, True),
        ("float32", False, False),
    ],
)
def test_precision_follows_the_compute_dtype(monkeypatch, dtype, fp16, bf16):
    monkeypatch.setattr(runtime, "detect", lambda: SimpleNamespace(dtype=dtype))
    assert training.precision() == {"fp16": fp16, "bf16": bf16}


def test_adapters_that_trl_made_bfloat16_are_float32_again(make_trainer):
    trainer = make_trainer("qlora")
    assert dtypes(trainer) == {torch.bfloat16}  # else float32_adapters has lost its use
    training.float32_adapters(trainer)
    assert dtypes(trainer) == {torch.float32}


def test_a_dtype_that_changes_later_stops_training(make_trainer):
    trainer = make_trainer("qlora")
    training.float32_adapters(trainer)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    with pytest.raises(TypeError, match=r"84 trainable .* is torch\.float16.*last"):
        trainer.train()
    assert trainer.state.global_step == 0


# The fast path


PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [False, True])
def test_training_on_the_fast_path_is_training(make_trainer, packing):
    usual = {"max_steps": 12, "packing": packing, "max_length": 128}
    usual |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    plain, fast = (make_trainer("qlora", **usual) for _ in range(2))
    for trainer in (plain, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    plain.train()
    fast.train()
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-3)
    assert losses(fast)[-1] < 0.8 * losses(fast)[0]
    assert not fast.args.use_liger_kernel  # or the next run would put Liger's in
    for name in ("mean_token_accuracy", "num_tokens"):
        found, expected = (
            [e[name] for e in t.state.log_history if name in e] for t in (fast, plain)
        )
        assert found == pytest.approx(expected, abs=0.02)


def test_rows_that_are_packed_train_on_the_same_tokens(make_trainer):
    settings = {"packing": True, "max_length": 128, "per_device_train_batch_size": 1}
    trained = []
    for changes in ({}, settings):
        loader = make_trainer("lora", **changes).get_train_dataloader()
        ids = [b["input_ids"][b["labels"] != -100] for b in loader]
        trained.append(sorted(torch.cat(ids).tolist()))
    assert trained[0] == trained[1] and len(trained[0]) > 100


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_packed_rows_do_not_see_each_other_on_the_plain_path(make_trainer, method):
    settings = {"packing": True, "max_length": 128, "per_device_train_batch_size": 1}
    trainer = make_trainer(method, **settings)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    second = int((batch["position_ids"][0] == 0).nonzero()[1])
    batch["labels"][0, :second] = -100
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        batch["input_ids"][0, :second] = 7
        again = trainer.compute_loss(trainer.model, dict(batch))
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_plain_path_is_back_when_asked_for(make_trainer):
    trainer = make_trainer("qlora")
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, PLAN)
    training.use_plain_path(trainer)
    trainer.train()
    assert "entropy" in trainer.state.log_history[0]  # TRL found logits


def test_evaluation_beside_the_fast_path_is_the_plain_ones(make_trainer, demo_rows):
    trainer = make_trainer("qlora")
    training.float32_adapters(trainer)
    rows = trainer.train_dataset.select(range(4))
    trainer.evaluate(rows)
    training.use_fast_path(trainer, PLAN)
    trainer.evaluate(rows)
    expected, found = trainer.state.log_history
    assert not trainer.args.use_liger_kernel
    for name in ("eval_loss", "eval_mean_token_accuracy", "eval_entropy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


def test_what_the_fast_path_cannot_train_is_recomputed_plainly(make_trainer, capsys):
    trainer = make_trainer("full")
    training.use_fast_path(trainer, PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plain path: its embeddings, norms or head are trained")
    assert lines[1] == "plain path: 6 of 6 layers are recomputed"
    layers = trainer.model.model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    trainer.train()
    training.use_fast_path(trainer, PLAN)
    hooks = trainer.model.model.embed_tokens._forward_hooks
    assert len(hooks) == 1
    training.use_plain_path(trainer)
    assert not any(layer.gradient_checkpointing for layer in layers) and not hooks


def test_what_is_saved_after_the_fast_path_is_an_ordinary_adapter(
    make_trainer, tokenizer, tmp_path
):
    from peft import PeftModel

    from colab_utils import models

    trainer = make_trainer("lora")
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, PLAN)
    trainer.train()
    training.save(trainer, tokenizer, tmp_path)
    again = PeftModel.from_pretrained(models.load_model("demo"), tmp_path).eval()
    batch = dict(next(iter(trainer.get_train_dataloader())))
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        torch.testing.assert_close(again(**batch).logits, expected)


# Resuming


def checkpoint(parent, step: int) -> object:
    """A checkpoint as the trainer writes it: weights, optimizer, state."""
    from safetensors.torch import save_file

    folder = parent / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(64)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 8}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(64)}, folder / name)
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    return folder


RUN = {"data": "abc", "rank": 8, "rate": 1e-3}


@pytest.fixture
def saved(tmp_path):
    """Two complete checkpoints of the run `RUN`, steps 9 and 10."""
    assert training.resume_point(tmp_path, RUN) is None
    return tmp_path, checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)


def test_the_newest_checkpoint_by_number_is_resumed(saved, capsys):
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
def test_a_checkpoint_with_a_file_cut_short_is_passed_over(saved, name, kept, capsys):
    folder, older, newest = saved
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: int(len(content) * kept)])
    assert training.resume_point(folder, RUN) == str(older)
    assert "checkpoint-10 is incomplete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"]
)
def test_a_checkpoint_without_a_file_is_passed_over(saved, name):
    folder, older, newest = saved
    (newest / name).unlink()
    assert training.resume_point(folder, RUN) == str(older)


def test_other_names_and_empty_folders_are_no_checkpoints(saved):
    folder, _, newest = saved
    for name in ("checkpoint-foo", "checkpoint-", "checkpoint-11", "checkpoint-1x"):
        (folder / name).mkdir()
    assert training.resume_point(folder, RUN) == str(newest)


def test_without_a_complete_checkpoint_training_begins_anew(tmp_path):
    training.resume_point(tmp_path, RUN)
    (tmp_path / "checkpoint-5").mkdir()
    assert training.resume_point(tmp_path, RUN) is None


def test_checkpoints_of_another_run_are_removed_and_nothing_else(saved, capsys):
    folder, older, newest = saved
    (folder / "notes.txt").write_text("mine")
    assert training.resume_point(folder, RUN | {"rank": 16}) is None
    assert "other parameters or data are removed" in capsys.readouterr().out
    assert not older.exists() and not newest.exists()
    assert (folder / "notes.txt").read_text() == "mine"
    # From now on the folder belongs to the new run.
    new = checkpoint(folder, 3)
    assert training.resume_point(folder, RUN | {"rank": 16}) == str(new)


def test_checkpoints_that_nobody_signed_are_not_resumed(tmp_path):
    stranger = checkpoint(tmp_path, 3)
    assert training.resume_point(tmp_path, RUN) is None
    assert not stranger.exists()


def test_a_signature_cut_while_writing_is_another_run(saved):
    folder, *_ = saved
    mark = folder / "made_from.json"
    mark.write_text(mark.read_text()[:10])
    assert training.resume_point(folder, RUN) is None


def adapter_of(trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if p.requires_grad}


class StopAt(TrainerCallback):
    """Disconnect after a step: save, and stop."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = control.should_training_stop = (
            state.global_step == self.step
        )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_trainer, tmp_path):
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
    assert dtypes(resumed) == {torch.float32}
    found = adapter_of(resumed)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)
    # The comparison means something: the second half of the run moved the adapter.
    halfway = adapter_of(cut)
    apart = max((halfway[n] - expected[n]).abs().max().item() for n in expected)
    assert apart > 1e-4
    assert first.keys() == expected.keys()


# Saving


def test_what_an_older_run_left_is_removed_on_saving(trained, tokenizer, tmp_path):
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


def test_the_log_of_the_loss_is_saved(trained):
    trainer, folder = trained["qlora"]
    log = json.loads((folder / "training_log.json").read_text())
    assert [entry["step"] for entry in log] == [1, 2]
    assert log[0]["loss"] == trainer.state.log_history[0]["loss"] > 1


# What is shown while training


def play(plot, steps: int, every: int = 1) -> None:
    """Drive a callback as the trainer does, over `steps` steps."""
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
def test_headless_a_few_lines_and_one_figure_are_shown(
    headless, capsys, monkeypatch, steps, every
):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda f, **_: shown.append(f))
    play(callbacks.LivePlot(), steps, every)
    lines = capsys.readouterr().out.splitlines()
    assert min(steps, 10) - 1 <= len(lines) <= 10
    assert all(line.startswith("step ") for line in lines)
    assert len(shown) == 1
    (line,) = shown[0].axes[0].lines
    assert list(line.get_xdata()) == list(range(every, steps + 1, every))
    assert line.get_marker() == "."  # or a single point would not be seen
    assert shown[0].axes[0].get_title(loc="left").endswith("s in all")
    assert [text.endswith("s left") for text in lines[:-1]] == [True] * (len(lines) - 1)


def test_watched_one_figure_is_drawn_again_and_again(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("HEADLESS", "0")
    shown, updated = [], []

    def display(figure, display_id):
        shown.append(figure)
        return SimpleNamespace(update=updated.append)

    monkeypatch.setattr("IPython.display.display", display)
    plot = callbacks.LivePlot(every=0)
    play(plot, 5)
    assert (len(shown), len(updated)) == (1, 5)  # five steps and the end
    title = updated[-1].axes[0].get_title(loc="left")
    assert title.startswith("step 5 of 5, loss 0.200")
    play(plot, 5)
    assert len(shown) == 2  # training again draws below its own cell
    assert capsys.readouterr().out == ""


def test_progress_takes_the_place_of_the_trainers_own(make_trainer, headless, capsys):
    trainer = make_trainer("qlora", disable_tqdm=False)
    training.float32_adapters(trainer)
    training.show_progress(trainer)
    trainer.train()
    kinds = {type(c).__name__ for c in trainer.callback_handler.callbacks}
    assert {"LivePlot", "SaveEvery", "CheckLoss", "CheckFloat32"} <= kinds
    assert {"ProgressCallback", "PrinterCallback"}.isdisjoint(kinds)
    out = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in out] == ["step 1 of 2", "step 2 of 2", "Figure(700x"]


def test_a_checkpoint_is_saved_by_the_clock(make_trainer, headless, tmp_path):
    kept = {"max_steps": 3, "save_total_limit": 2}
    trainer = make_trainer("qlora", output_dir=str(tmp_path), **kept)
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=0)
    training.resume_point(tmp_path, RUN)
    trainer.train()
    steps = {folder.name for folder in tmp_path.glob("checkpoint-*")}
    assert steps == {"checkpoint-2", "checkpoint-3"}
    assert training.resume_point(tmp_path, RUN) == str(tmp_path / "checkpoint-3")
    training.remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_no_checkpoint_is_saved_before_its_time(make_trainer, headless, tmp_path):
    trainer = make_trainer("qlora", output_dir=str(tmp_path))
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=10)
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_loss_that_is_no_number_stops_training(make_trainer, headless):
    trainer = make_trainer("qlora", max_steps=50, logging_steps=2)
    training.float32_adapters(trainer)
    training.show_progress(trainer)
    break_a_weight(trainer)
    with pytest.raises(FloatingPointError, match=r"at step 2\. Lower the learning"):
        trainer.train()


def break_a_weight(trainer) -> None:
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    weight.data[0, 0] = float("nan")


@pytest.mark.parametrize("minutes", [0, 10])
def test_weights_that_are_no_numbers_are_not_saved(
    make_trainer, headless, tmp_path, minutes
):
    """Also where no step of the short run is logged."""
    short = {"max_steps": 3, "logging_steps": 5, "output_dir": str(tmp_path)}
    trainer = make_trainer("qlora", **short)
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=minutes)
    break_a_weight(trainer)
    step = 3 if minutes else 1
    with pytest.raises(FloatingPointError, match=rf"no number any more at step {step}"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    "logs",
    [
        {"loss": 0.0, "grad_norm": 0.0},
        {"loss": 2.0, "grad_norm": float("inf")},  # 16-bit scaling finds its scale
        {"loss": 0.0},
        {"loss": float("nan")},  # and leaves this step out
        {"train_loss": float("nan")},
    ],
)
def test_a_loss_that_is_a_number_goes_on(logs):
    state, model = SimpleNamespace(global_step=1), torch.nn.Linear(2, 2)
    callbacks.CheckLoss().on_log(None, state, None, logs=logs, model=model)


def test_a_loss_that_stays_no_number_stops_training_beside_sound_weights():
    check, model = callbacks.CheckLoss(), torch.nn.Linear(2, 2)

    def log(loss: float, step: int) -> None:
        state = SimpleNamespace(global_step=step)
        check.on_log(None, state, None, logs={"loss": loss}, model=model)

    nan = float("nan")
    for step, loss in enumerate((nan, nan, 2.0, nan, float("inf"))):
        log(loss, step)
    with pytest.raises(FloatingPointError, match=r"The loss is no number .* at step 5"):
        log(nan, 5)


def test_a_loss_that_stays_0_stops_training():
    check, state = callbacks.CheckLoss(), SimpleNamespace(global_step=7)
    for loss in (0.0, 0.0, 0.5, 0.0, 0.0):
        check.on_log(None, state, None, logs={"loss": loss, "grad_norm": 0.0})
    with pytest.raises(FloatingPointError, match=r"0 for the third time at step 7"):
        check.on_log(None, state, None, logs={"loss": 0.0, "grad_norm": 0.0})


def test_a_row_without_trained_tokens_stops_training(make_trainer, headless):
    rows = [{"input_ids": [1, 5, 6, 2], "labels": [-100] * 4}] * 8
    ready = {"assistant_only_loss": False, "max_steps": 8}
    ready["dataset_kwargs"] = {"skip_prepare_dataset": True}
    trainer = make_trainer("qlora", rows=rows, **ready)
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, PLAN)
    training.show_progress(trainer)
    with pytest.raises(FloatingPointError, match=r"nothing to learn"):
        trainer.train()
