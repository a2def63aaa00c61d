from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from colab_utils import memory, models, training

RANK = 8  # of the trainers that conftest makes


def batch_of(rows: int, tokens: int, padded: int = 0) -> dict[str, torch.Tensor]:
    """Return rows of random tokens; the first ends with `padded` tokens of padding."""
    ids = torch.randint(3, 1024, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - padded :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def assert_close(found: memory.Memory, measured: memory.Memory) -> None:
    """Assert that the totals agree to 5 % and the parts to 10 %.

    All tensors that autograd saves are one part.
    """
    assert found.total == pytest.approx(measured.total, rel=0.05)
    kept = ("checkpoints", "activations", "logits")
    saved = sum(getattr(found, name) for name in kept)
    assert saved == pytest.approx(measured.activations, rel=0.1)
    for name in ("weights", "scales", "adapters", "gradients", "optimizer"):
        value = getattr(measured, name)
        # In so small a model the code tables are large compared with the scales.
        rel = 0.1 if name != "scales" else 0.6
        assert getattr(found, name) == pytest.approx(value, rel=rel), name


@pytest.mark.slow
@pytest.mark.parametrize("method", memory.METHODS)
@pytest.mark.parametrize("shape", [(4, 48, 6), (2, 256)])
def test_memory_held_is_the_estimate(trained, method, shape):
    trainer, _ = trained[method]
    measured = training.memory_held(trainer, batch_of(*shape))
    config, tokens = trainer.model.config, shape[0] * shape[1]
    assert_close(memory.at_loss(config, method, RANK, tokens, gpu=False), measured)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
@pytest.mark.parametrize("recompute", [2, 6])
def test_memory_held_with_checkpointed_layers(make_trainer, method, recompute):
    trainer = make_trainer(method, max_steps=1)
    training.float32_adapters(trainer)
    plan = memory.Plan(512, 1, recompute, False, False, memory.Memory())
    training.use_fast_path(trainer, plan)
    trainer.train()
    measured = training.memory_held(trainer, batch_of(2, 256))
    config = trainer.model.config
    found = memory.at_loss(config, method, RANK, 512, recompute=recompute, gpu=False)
    assert_close(found, measured)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("recompute", [0, 2, 6])
def test_memory_held_on_the_fast_path(make_trainer, method, recompute):
    trainer = make_trainer(method, max_steps=1)
    training.float32_adapters(trainer)
    plan = memory.Plan(512, 1, recompute, False, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    trainer.train()
    measured = training.memory_held(trainer, batch_of(2, 256))
    config = trainer.model.config
    found = memory.at_loss(
        config, method, RANK, 512, recompute=recompute, gpu=False, fast=True
    )
    assert_close(found, measured)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_held_of_bfloat16_training(make_trainer, method):
    # bfloat16, which a CPU can train in, has the bytes of float16.
    trainer = make_trainer(method, max_steps=1, bf16=True)
    for parameter in trainer.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    training.float32_adapters(trainer)
    trainer.train()
    measured = training.memory_held(trainer, batch_of(2, 256))
    config = trainer.model.config
    assert_close(memory.at_loss(config, method, RANK, 512), measured)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> str:
    """A small Llama with two key heads for six query heads, and tied embeddings."""
    from transformers import AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_key_value_heads = 2
    config.num_hidden_layers = 3
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("grouped")
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_memory_held_of_grouped_heads_and_tied_embeddings(
    make_trainer, grouped, method
):
    trainer = make_trainer(method, grouped, max_steps=1)
    training.float32_adapters(trainer)
    trainer.train()
    config = trainer.model.config
    measured = training.memory_held(trainer, batch_of(8, 32, padded=4))
    assert_close(memory.at_loss(config, method, RANK, 256, gpu=False), measured)
    trainable, total = models.count_parameters(trainer.model)
    if method == "qlora":
        assert trainable == memory.adapter_parameters(config, RANK)
    else:
        assert measured.weights == pytest.approx(4 * total, rel=1e-3)


def test_memory_held_of_the_first_batch_or_another(trained):
    trainer, _ = trained["qlora"]
    batch = next(iter(trainer.get_train_dataloader()))
    first = training.memory_held(trainer)
    assert first == training.memory_held(trainer, batch)
    assert (
        first.activations < training.memory_held(trainer, batch_of(4, 128)).activations
    )


def test_memory_held_changes_nothing(trained):
    trainer, _ = trained["qlora"]
    trainer.model.eval()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    training.memory_held(trainer)
    assert not trainer.model.training
    after = list(trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
