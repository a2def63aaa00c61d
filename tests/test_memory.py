from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from colab_utils import memory, models, training

RANK = 8  # of the trainers that conftest makes


def seven_b(**changes):
    """The config of Llama 2 7B."""
    from transformers import AutoConfig

    usual = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    return AutoConfig.for_model("llama", **usual | changes)


def batch_of(rows: int, tokens: int, padded: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random tokens; the first ends with `padded` tokens of padding."""
    ids = torch.randint(3, 1024, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - padded :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def assert_close(found: memory.Memory, measured: memory.Memory) -> None:
    """5 % in total, 10 % in each part."""
    assert found.total == pytest.approx(measured.total, rel=0.05)
    for name, value in asdict(measured).items():
        assert value > 0
        assert getattr(found, name) == pytest.approx(value, rel=0.1), name


@pytest.mark.parametrize("method", models.METHODS)
@pytest.mark.parametrize("shape", [(4, 48, 6), (2, 256)])
def test_the_estimate_is_what_training_holds(trained, method, shape):
    trainer, _ = trained[method]
    measured = memory.measure(trainer, batch_of(*shape))
    config, tokens = trainer.model.config, shape[0] * shape[1]
    found = memory.estimate(config, method, tokens, RANK, half=False)
    assert_close(found, measured)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_estimate_of_checkpointing(make_trainer, method):
    trainer = make_trainer(method, max_steps=1, gradient_checkpointing=True)
    training.float32_adapters(trainer)
    trainer.train()
    measured = memory.measure(trainer, batch_of(2, 256))
    assert_close(
        memory.estimate(trainer.model.config, method, 512, RANK, True, half=False),
        measured,
    )
    # The layer that was kept whole for the measurement is checkpointed again.
    layers = trainer.model.get_base_model() if method == "qlora" else trainer.model
    assert all(layer.gradient_checkpointing for layer in layers.model.layers)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_of_16_bit_training(make_trainer, method):
    # On a CPU 16 bits are bfloat16, which has the bytes of float16.
    trainer = make_trainer(method, max_steps=1, bf16=True)
    for parameter in trainer.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    training.float32_adapters(trainer)
    trainer.train()
    measured = memory.measure(trainer, batch_of(2, 256))
    config = trainer.model.config
    assert_close(memory.estimate(config, method, 512, RANK), measured)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> str:
    """A small Llama with two key heads for six query heads, and tied embeddings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_key_value_heads = 2
    config.num_hidden_layers = 3
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("grouped")
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_estimate_of_grouped_heads_and_tied_embeddings(
    make_trainer, grouped, method
):
    trainer = make_trainer(method, grouped, max_steps=1)
    training.float32_adapters(trainer)
    trainer.train()
    config = trainer.model.config
    measured = memory.measure(trainer, batch_of(8, 32, padded=4))
    assert_close(memory.estimate(config, method, 256, RANK, half=False), measured)
    trainable, total = models.count_parameters(trainer.model)
    if method == "qlora":
        assert trainable == memory.adapter_parameters(config, RANK)
    else:
        assert measured.weights == pytest.approx(4 * total, rel=1e-3)


def test_the_first_batch_is_measured_unless_another_is_given(trained):
    trainer, _ = trained["qlora"]
    batch = next(iter(trainer.get_train_dataloader()))
    first = memory.measure(trainer)
    assert first == memory.measure(trainer, batch)
    assert first.activations < memory.measure(trainer, batch_of(4, 128)).activations


def test_measuring_leaves_no_trace(trained):
    trainer, _ = trained["qlora"]
    trainer.model.eval()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    memory.measure(trainer)
    assert not trainer.model.training
    after = list(trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_llama_2_7b():
    config = seven_b()
    assert memory.adapter_parameters(config, 16) == pytest.approx(2.4986e6 * 16, 1e-4)
    cost = memory.estimate(config, "qlora", 2048)
    adapters = memory.adapter_parameters(config, 16)
    assert cost.weights - 4 * adapters == pytest.approx(3.866e9, rel=0.001)
    assert cost.gradients == 4 * adapters
    assert cost.optimizer == 8 * adapters
    # Measured on a GPU: bytes that a layer keeps of each token.
    kept = memory.activation_bytes(config, "qlora", 16, size=2)
    assert kept == pytest.approx(173.6e3, rel=0.03)
    full = memory.estimate(config, "full", 2048)
    assert full.weights + full.gradients + full.optimizer == 16 * 6_738_415_616


def test_more_tokens_cost_activations_only():
    one, two = (memory.estimate(seven_b(), "qlora", n) for n in (1024, 2048))
    constant = 2 * memory.adapter_parameters(seven_b(), 16)
    assert two.activations - constant == 2 * (one.activations - constant)
    assert (two.weights, two.gradients) == (one.weights, one.gradients)


def test_the_8_bit_optimizer_takes_a_quarter():
    costs = [
        memory.estimate(seven_b(), "qlora", 1, optimizer=name).optimizer
        for name in ("adamw_8bit", "adamw_torch")
    ]
    assert costs[0] == pytest.approx(costs[1] / 4, rel=0.02)


def test_names_that_are_unknown_are_named():
    with pytest.raises(ValueError, match=r"'QLoRA' is unknown; .* qlora, lora, full"):
        memory.estimate(seven_b(), "QLoRA", 1)
    with pytest.raises(ValueError, match=r"'sgd' is unknown; .* adamw_8bit"):
        memory.estimate(seven_b(), "lora", 1, optimizer="sgd")


def test_gib_add_up():
    cost = memory.Memory(weights=2**30, gradients=2**29, optimizer=0, activations=2**29)
    assert cost.as_gib() == {
        "weights": 1.0,
        "gradients": 0.5,
        "optimizer": 0.0,
        "activations": 0.5,
        "total": 2.0,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's here")
def test_the_peak_grows_with_what_is_held():
    import psutil

    used = psutil.Process().memory_info().rss / memory.GIB
    more = int((memory.peak() - used + 0.1) * 2**28)  # so many float32 reach a new peak
    before = memory.peak()
    held = torch.ones(more)
    assert before + 0.05 < memory.peak() < before + 0.2
    del held
    memory.release()
