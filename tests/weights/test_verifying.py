"""The comparison a layer at a time against whole models of transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from colab_utils import models
from colab_utils import recipe as recipes
from colab_utils.weights import merging, verifying
from colab_utils.weights import shards as storage

CONVERSATIONS = [list(range(3, 40)), [1, 7, 900, 7, 2], [5]]


@pytest.fixture(autouse=True)
def nobody_watches(headless):
    """No progress bars."""


def make(folder: Path, tied: bool = False, heads: int = 2, **options) -> tuple:
    """A small random Llama with grouped queries, and a random adapter."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_hidden_layers, config.num_key_value_heads = 3, heads
    config.tie_word_embeddings = tied
    model = AutoModelForCausalLM.from_config(config).half()
    model.save_pretrained(folder / "base", max_shard_size="1MB")
    usual = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"}
    usual |= {"init_lora_weights": False}
    adapted = get_peft_model(model.float(), LoraConfig(**usual | options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.mul_(0.3)
            if "modules_to_save" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape))
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def logits_of(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """Of all conversations, by whole models in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return torch.cat(
            [model.eval()(torch.tensor([i])).logits[0] for i in CONVERSATIONS]
        )


def expected(base: Path, adapter: Path, merged: Path) -> tuple[float, float]:
    apart, whole = logits_of(base, adapter), logits_of(merged)
    same = (apart.argmax(-1) == whole.argmax(-1)).float().mean().item()
    return ((whole - apart).norm() / apart.norm()).item(), same


KINDS = [
    {},
    {"heads": 6},
    {"tied": True},
    {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "input_layernorm"]},
    {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    {"target_modules": ["v_proj", "lm_head"], "use_dora": True},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("rows", [100, 4096])
def test_the_numbers_are_those_of_whole_models(tmp_path, monkeypatch, options, rows):
    monkeypatch.setattr(verifying, "ROWS", rows)
    base, adapter = make(tmp_path, **options)
    out = merging.merge(base, adapter, tmp_path / "out")
    # Far from each other, or the comparison would be of rounding errors.
    for merged, least in ((base, 1e-2), (out, 0)):
        found = verifying.verify(base, adapter, merged, CONVERSATIONS)
        difference, same = expected(base, adapter, merged)
        assert found.difference == pytest.approx(difference, rel=1e-2, abs=1e-6)
        assert found.same == pytest.approx(same, abs=1e-6)
        assert found.difference > least and len(found.layers) == 3
    assert found.difference < 2e-3 and max(found.layers) < 2e-3


def test_the_trained_adapter_of_the_demo(trained, tmp_path):
    _, adapter = trained["lora"]
    base = models.download("demo")
    out = merging.merge(base, adapter, tmp_path / "out")
    found = verifying.verify(base, adapter, out, CONVERSATIONS)
    assert found.difference == pytest.approx(expected(base, adapter, out)[0], rel=0.05)
    assert found.difference < 2e-3 and found.same > 0.9


def test_what_qlora_trained_beside(trained, tmp_path):
    _, adapter = trained["qlora"]
    base = models.download("demo")
    out = merging.merge(base, adapter, tmp_path / "out", "dequantized")
    found = verifying.verify(base, adapter, out, CONVERSATIONS, "dequantized")
    assert found.difference < 2e-3
    other = verifying.verify(base, adapter, out, CONVERSATIONS)
    assert other.difference > 10 * found.difference
    model, _ = models.load_adapter(adapter)  # in 4 bits
    with torch.inference_mode():
        apart = torch.cat([model(torch.tensor([i])).logits[0] for i in CONVERSATIONS])
    whole = logits_of(out)
    difference = ((whole - apart).norm() / apart.norm()).item()
    # The quantised model does not round what 4 bits hold to 16: less than twice it.
    assert found.difference == pytest.approx(difference, rel=0.5)


def change(folder: Path, name: str, how) -> None:
    """Write one weight of a model anew."""
    (file,) = (s for s in storage.find_shards(folder) if name in load_file(s))
    tensors = load_file(file)
    how(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("layer", [0, 2])
def test_one_wrong_weight_is_found_and_its_layer_named(tmp_path, layer):
    base, adapter = make(tmp_path)
    out = merging.merge(base, adapter, tmp_path / "out")
    right = verifying.verify(base, adapter, out, CONVERSATIONS)
    name = f"model.layers.{layer}.self_attn.v_proj.weight"
    change(out, name, lambda weight: weight.view(-1)[:1].add_(1))  # one number of it
    found = verifying.verify(base, adapter, out, CONVERSATIONS)
    assert found.difference > 5 * right.difference and found.difference > 1e-2
    assert found.layers[:layer] == right.layers[:layer]
    assert found.layers[layer] > 5 * right.layers[layer]


def test_an_adapter_that_was_merged_twice_is_found(tmp_path):
    base, adapter = make(tmp_path)
    once = merging.merge(base, adapter, tmp_path / "once")
    twice = merging.merge(once, adapter, tmp_path / "twice")
    assert verifying.verify(base, adapter, once, CONVERSATIONS).difference < 2e-3
    assert verifying.verify(base, adapter, twice, CONVERSATIONS).difference > 0.05
    # The base as it was is not the merged model either.
    assert verifying.verify(base, adapter, base, CONVERSATIONS).difference > 0.05


def test_a_model_that_lacks_a_weight_is_named(tmp_path):
    base, adapter = make(tmp_path)
    out = merging.merge(base, adapter, tmp_path / "out")
    (out / "model.safetensors.index.json").unlink()
    storage.find_shards(out)[1].unlink()
    with pytest.raises(ValueError, match=r"out lacks model\..*: merge again"):
        verifying.verify(base, adapter, out, CONVERSATIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 77.0}),
        ("rms_norm_eps", 0.5),
        ("hidden_size", 96),
        ("tie_word_embeddings", True),
    ],
)
def test_another_config_is_named(tmp_path, name, value):
    base, adapter = make(tmp_path)
    out = merging.merge(base, adapter, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=f"computes otherwise: its config says {name}"):
        verifying.verify(base, adapter, out, CONVERSATIONS)
    same = {"dtype": "bfloat16", "transformers_version": "4.0.0", "use_cache": False}
    (out / "config.json").write_text(json.dumps(config | same))
    assert verifying.verify(base, adapter, out, CONVERSATIONS).difference < 2e-3


def test_what_qlora_trained_beside_in_another_dtype(trained, tmp_path):
    """The base is stored in float16, and was loaded in bfloat16 to be trained."""
    _, folder = trained["qlora"]
    adapter = tmp_path / "adapter"
    shutil.copytree(folder, adapter)
    base = models.download("demo")
    as_stored = merging.merge(base, adapter, tmp_path / "a", "dequantized")
    recipes.write(adapter, dtype="bfloat16")
    out = merging.merge(base, adapter, tmp_path / "b", "dequantized")
    found = verifying.verify(base, adapter, out, CONVERSATIONS, "dequantized")
    other = verifying.verify(base, adapter, as_stored, CONVERSATIONS, "dequantized")
    assert found.difference < 2e-3
    assert other.difference > 10 * found.difference


@pytest.mark.parametrize("conversations", [[], [[]]])
def test_nothing_to_compare_on(tmp_path, conversations):
    base, adapter = make(tmp_path)
    with pytest.raises(ValueError, match="no tokens to compare on"):
        verifying.verify(base, adapter, base, conversations)


def test_another_architecture_is_named(tmp_path):
    base, adapter = make(tmp_path)
    shutil.copytree(base, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    with pytest.raises(ValueError, match="is a mistral model, and only Llama"):
        verifying.verify(tmp_path / "other", adapter, base, CONVERSATIONS)
