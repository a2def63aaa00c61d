from __future__ import annotations

import pytest
import torch
from trl import SFTTrainer

from colab_utils import memory, training

PLAN = memory.Plan(256, 1, 2, False, True, memory.Memory())
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


def log(trainer) -> list[dict]:
    """Return a trainer's log without the entries that depend on the clock."""
    return [
        {name: value for name, value in entry.items() if name not in TIMES}
        for entry in trainer.state.log_history
    ]


@pytest.mark.slow
def test_fast_sft_trainer_on_the_reference_path_logs_what_trl_does(make_trainer):
    ours, trls = make_trainer("lora"), make_trainer("lora", kind=SFTTrainer)
    for trainer in (ours, trls):
        training.float32_adapters(trainer)
    training.use_fast_path(ours, PLAN)
    training.use_reference_path(ours)
    training.use_reference_path(trls)
    ours.train()
    trls.train()
    assert type(trls) is SFTTrainer
    assert log(ours) == log(trls)
    assert {"entropy", "num_tokens", "mean_token_accuracy"} <= log(trls)[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_compute_loss_on_the_fast_path_logs_all_except_entropy(make_trainer, packing):
    """Tokens are counted exactly as TRL counts them, padding excluded."""
    settings = {"packing": packing, "max_length": 128, "logging_steps": 2}
    reference, fast = (make_trainer("lora", **settings) for _ in range(2))
    for trainer in (reference, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    reference.train()
    fast.train()
    expected, found = log(reference)[0], log(fast)[0]
    assert expected.keys() - found.keys() == {"entropy"}
    assert found["num_tokens"] == expected["num_tokens"]
    batch = dict(next(iter(fast.get_train_dataloader())))
    loss, output = fast.compute_loss(fast.model.train(), batch, return_outputs=True)
    assert output.logits is None and torch.equal(loss, output.loss)


@pytest.mark.slow
def test_compute_loss_of_another_loss_is_trls(make_trainer):
    """The fast path knows one loss; TRL's DFT loss is computed from logits."""
    reference, fast = (make_trainer("lora", loss_type="dft") for _ in range(2))
    for trainer in (reference, fast):
        training.float32_adapters(trainer)
    training.use_fast_path(fast, PLAN)
    reference.train()
    fast.train()
    assert log(fast) == log(reference)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_use_fast_path_of_trls_trainer(make_trainer, capsys, fast):
    """It can only use the reference path, with gradient checkpointing."""
    trainer = make_trainer("lora", kind=SFTTrainer)
    training.float32_adapters(trainer)
    plan = memory.Plan(256, 1, 2, False, fast, memory.Memory())
    if fast:
        with pytest.raises(TypeError, match=r"with training\.sft\.FastSFTTrainer"):
            training.use_fast_path(trainer, plan)
    else:
        training.use_fast_path(trainer, plan)
        assert "checkpointing for 2 of 6 layers" in capsys.readouterr().out
    trainer.train()
    assert "entropy" in trainer.state.log_history[0]
