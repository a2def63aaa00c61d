from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from colab_utils import memory, runtime, training


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
def test_precision_of_each_compute_dtype(monkeypatch, dtype, fp16, bf16):
    monkeypatch.setattr(runtime, "detect", lambda: SimpleNamespace(dtype=dtype))
    assert training.precision() == {"fp16": fp16, "bf16": bf16}


def test_float32_adapters_after_trl_made_them_bfloat16(make_trainer):
    trainer = make_trainer("qlora")
    assert dtypes(trainer) == {torch.bfloat16}  # else float32_adapters is needless
    training.float32_adapters(trainer)
    assert dtypes(trainer) == {torch.float32}


@pytest.mark.slow
def test_float32_adapters_checks_again_when_training_begins(make_trainer):
    trainer = make_trainer("qlora")
    training.float32_adapters(trainer)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    with pytest.raises(TypeError, match=r"84 trainable .* is torch\.float16.*last"):
        trainer.train()
    assert trainer.state.global_step == 0


PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_use_fast_path_trains_as_the_reference_path(make_trainer, packing):
    usual = {"max_steps": 12, "packing": packing, "max_length": 128}
    usual |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    reference, fast = (make_trainer("qlora", **usual) for _ in range(2))
    for trainer in (reference, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    reference.train()
    fast.train()
    assert losses(fast) == pytest.approx(losses(reference), rel=1e-3)
    assert losses(fast)[-1] < 0.8 * losses(fast)[0]
    assert not fast.args.use_liger_kernel  # or the next run would put Liger's in
    for name in ("mean_token_accuracy", "num_tokens"):
        found, expected = (
            [e[name] for e in t.state.log_history if name in e]
            for t in (fast, reference)
        )
        assert found == pytest.approx(expected, abs=0.02)


def test_packing_trains_on_the_same_tokens(make_trainer):
    settings = {"packing": True, "max_length": 128, "per_device_train_batch_size": 1}
    trained = []
    for changes in ({}, settings):
        loader = make_trainer("lora", **changes).get_train_dataloader()
        ids = [b["input_ids"][b["labels"] != -100] for b in loader]
        trained.append(sorted(torch.cat(ids).tolist()))
    assert trained[0] == trained[1] and len(trained[0]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_packed_rows_do_not_see_each_other_on_the_reference_path(make_trainer, method):
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


@pytest.mark.slow
def test_use_reference_path_undoes_the_fast_path(make_trainer):
    trainer = make_trainer("qlora")
    training.float32_adapters(trainer)
    training.use_fast_path(trainer, PLAN)
    training.use_reference_path(trainer)
    trainer.train()
    assert "entropy" in trainer.state.log_history[0]  # TRL found logits


def test_evaluate_on_the_fast_path_is_the_reference_path(make_trainer, demo_rows):
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


@pytest.mark.slow
def test_use_fast_path_of_full_fine_tuning_is_checkpointing(make_trainer, capsys):
    trainer = make_trainer("full")
    training.use_fast_path(trainer, PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reference path: the embeddings, norms or head are trained"
    assert lines[1] == "reference path: gradient checkpointing for 6 of 6 layers"
    layers = trainer.model.model.layers
    assert all(layer.gradient_checkpointing for layer in layers)
    trainer.train()
    training.use_fast_path(trainer, PLAN)
    hooks = trainer.model.model.embed_tokens._forward_hooks
    assert len(hooks) == 1
    training.use_reference_path(trainer)
    assert not any(layer.gradient_checkpointing for layer in layers) and not hooks


@pytest.mark.slow
def test_save_after_the_fast_path_is_an_ordinary_adapter(
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


@pytest.mark.slow
def test_show_progress_replaces_the_trainers_own(make_trainer, headless, capsys):
    trainer = make_trainer("qlora", disable_tqdm=False)
    training.float32_adapters(trainer)
    training.show_progress(trainer)
    trainer.train()
    kinds = {type(c).__name__ for c in trainer.callback_handler.callbacks}
    assert {"LivePlot", "SaveEvery", "CheckLoss", "CheckWeights"} <= kinds
    assert {"ProgressCallback", "PrinterCallback"}.isdisjoint(kinds)
    out = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in out] == ["step 1 of 2", "step 2 of 2", "Figure(700x"]
