from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from helpers.llamas import small_llama

from colab_utils import training


def trainer_of(dtype: torch.dtype, scale: float = 1.0) -> SimpleNamespace:
    """Return a trainer of a small Llama whose second MLP adds `scale` times as much."""
    model = small_llama(torch.float32)
    with torch.no_grad():
        for linear in (
            model.model.layers[1].mlp.up_proj,
            model.model.layers[1].mlp.down_proj,
        ):
            linear.weight.mul_(scale**0.5)
    return SimpleNamespace(model=model.to(dtype))


def forward(trainer: SimpleNamespace) -> torch.Tensor:
    """Return what the layers write: (layers, rows, tokens, width)."""
    torch.manual_seed(0)
    ids = torch.randint(3, 256, (2, 20))
    with torch.no_grad():
        out = trainer.model(input_ids=ids, output_hidden_states=True)
    return torch.stack(out.hidden_states)


def largest(scale: float) -> float:
    """Return the largest activation after the second layer, in float32."""
    return forward(trainer_of(torch.float32, scale))[2].abs().max().item()


def test_activation_range_prints_the_largest_activation(capsys):
    trainer = trainer_of(torch.float32, scale=1e6)
    with training.activation_range(trainer):
        hidden = forward(trainer)
    # The third layer, whose output is not in the list, changes it by little.
    first, second = hidden[1:3].abs().amax((1, 2, 3)).tolist()
    assert second > 100 * first
    printed = capsys.readouterr().out
    found = re.fullmatch(r"largest activation: (\S+), after layer [23] of 3\n", printed)
    assert float(found[1].replace(",", "")) == pytest.approx(second, rel=0.01)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_activation_range_removes_its_hooks():
    """The fast path refuses layers with hooks."""
    trainer = trainer_of(torch.float32)
    forward(trainer)  # transformers adds hooks of its own
    before = hooks(trainer.model)
    with training.activation_range(trainer):
        assert hooks(trainer.model) == before + 3
    assert hooks(trainer.model) == before
    with pytest.raises(KeyError), training.activation_range(trainer):
        raise KeyError
    assert hooks(trainer.model) == before


def test_activation_range_of_float16_below_its_limit(capsys):
    trainer = trainer_of(torch.float16)
    with training.activation_range(trainer):
        forward(trainer)
    assert "warning" not in capsys.readouterr().out


def test_activation_range_warns_above_half_of_the_limit(capsys):
    scale = 45_000 / largest(1e6) * 1e6  # the added numbers are nearly all there is
    assert 40_000 < largest(scale) < 50_000
    trainer = trainer_of(torch.float16, scale)
    with training.activation_range(trainer):
        forward(trainer)
    printed = capsys.readouterr().out
    assert "after layer" in printed
    assert "warning: this is more than half of float16's largest" in printed
    trainer = trainer_of(torch.bfloat16, scale)  # as large, and no problem there
    with training.activation_range(trainer):
        forward(trainer)
    assert "warning" not in capsys.readouterr().out


def test_activation_range_stops_at_an_overflow():
    trainer = trainer_of(torch.float16, scale=10 * 65504 / largest(1e6) * 1e6)
    with (
        pytest.raises(
            FloatingPointError,
            match=r"after layer 2 of 3 are (inf|nan): .*65,504\. Set MODEL",
        ),
        training.activation_range(trainer),
    ):
        forward(trainer)


def test_activation_range_of_damaged_weights():
    trainer = trainer_of(torch.float32)
    with torch.no_grad():
        trainer.model.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    with (
        pytest.raises(FloatingPointError, match="layer 3 of 3 are nan, so the weights"),
        training.activation_range(trainer),
    ):
        forward(trainer)


def test_activation_range_of_another_family(capsys):
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    trainer = SimpleNamespace(model=AutoModelForCausalLM.from_config(config))
    with training.activation_range(trainer):
        forward(trainer)
    assert "of 2\n" in capsys.readouterr().out
