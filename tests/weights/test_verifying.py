"""The comparison layer by layer, checked with whole models of transformers and PEFT."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import make_adapter, make_base, make_family
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from colab_utils import models, recipe, weights
from colab_utils.weights import verifying

CONVERSATIONS = [list(range(3, 40)), [1, 7, 900, 7, 2], [5]]


def make(folder: Path, tied: bool = False, heads: int = 2, **options) -> tuple:
    """Save a small random Llama and an adapter; return their folders."""
    config = {"num_hidden_layers": 3, "num_key_value_heads": heads}
    config["tie_word_embeddings"] = tied
    base = make_base(folder / "base", shard="1MB", **config)
    adapter = make_adapter(base, folder / "adapter", scale=0.3, noise=0.02, **options)
    return base, adapter


def logits_of(
    folder: Path, adapter: Path | None = None, conversations: list = CONVERSATIONS
) -> torch.Tensor:
    """Return the logits of all conversations, by a whole model in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return torch.cat(
            [model.eval()(torch.tensor([i])).logits[0] for i in conversations]
        )


def expected(base: Path, adapter: Path, merged: Path) -> tuple[float, float]:
    """Return the logits' relative difference and the share of equal top-1 tokens."""
    adapted, whole = logits_of(base, adapter), logits_of(merged)
    same_top_1 = (adapted.argmax(-1) == whole.argmax(-1)).float().mean().item()
    return ((whole - adapted).norm() / adapted.norm()).item(), same_top_1


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


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("rows", [100, 4096])
def test_verify_equals_whole_models(tmp_path, monkeypatch, options, rows):
    monkeypatch.setattr(verifying, "ROWS", rows)
    base, adapter = make(tmp_path, **options)
    out = weights.merge(base, adapter, tmp_path / "out")
    # The base differs from the merged model by more than rounding errors.
    for merged, least in ((base, 1e-2), (out, 0)):
        found = weights.verify(base, adapter, merged, CONVERSATIONS)
        difference, same_top_1 = expected(base, adapter, merged)
        assert found.difference == pytest.approx(difference, rel=1e-2, abs=1e-6)
        assert found.same_top_1 == pytest.approx(same_top_1, abs=1e-6)
        assert found.difference > least and len(found.layers) == 3
    assert found.difference < 2e-3 and max(found.layers) < 2e-3


@pytest.mark.slow
def test_verify_trained_adapter(trained, tmp_path):
    _, adapter = trained["lora"]
    base = models.download("demo")
    out = weights.merge(base, adapter, tmp_path / "out")
    found = weights.verify(base, adapter, out, CONVERSATIONS)
    assert found.difference == pytest.approx(expected(base, adapter, out)[0], rel=0.05)
    assert found.difference < 2e-3 and found.same_top_1 > 0.9


@pytest.mark.slow
def test_verify_dequantized(trained, tmp_path):
    _, adapter = trained["qlora"]
    base = models.download("demo")
    out = weights.merge(base, adapter, tmp_path / "out", "dequantized")
    found = weights.verify(base, adapter, out, CONVERSATIONS, "dequantized")
    assert found.difference < 2e-3
    other = weights.verify(base, adapter, out, CONVERSATIONS)
    assert other.difference > 10 * found.difference
    model, _ = models.load_adapter(adapter)  # quantized to NF4
    with torch.inference_mode():
        adapted = torch.cat([model(torch.tensor([i])).logits[0] for i in CONVERSATIONS])
    whole = logits_of(out)
    difference = ((whole - adapted).norm() / adapted.norm()).item()
    # The quantized model does not round its dequantized weights to float16.
    assert found.difference == pytest.approx(difference, rel=0.5)


def change(folder: Path, name: str, how) -> None:
    """Change one weight of a model with the function `how`."""
    (file,) = (s for s in weights.find_shards(folder) if name in load_file(s))
    tensors = load_file(file)
    how(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("layer", [0, 2])
def test_verify_wrong_weight(tmp_path, layer):
    base, adapter = make(tmp_path)
    out = weights.merge(base, adapter, tmp_path / "out")
    right = weights.verify(base, adapter, out, CONVERSATIONS)
    name = f"model.layers.{layer}.self_attn.v_proj.weight"
    change(out, name, lambda weight: weight.view(-1)[:1].add_(1))  # one number
    found = weights.verify(base, adapter, out, CONVERSATIONS)
    assert found.difference > 5 * right.difference and found.difference > 1e-2
    assert found.layers[:layer] == right.layers[:layer]
    assert found.layers[layer] > 5 * right.layers[layer]


def test_verify_adapter_merged_twice(tmp_path):
    base, adapter = make(tmp_path)
    once = weights.merge(base, adapter, tmp_path / "once")
    twice = weights.merge(once, adapter, tmp_path / "twice")
    assert weights.verify(base, adapter, once, CONVERSATIONS).difference < 2e-3
    assert weights.verify(base, adapter, twice, CONVERSATIONS).difference > 0.05
    # The base alone is not the merged model either.
    assert weights.verify(base, adapter, base, CONVERSATIONS).difference > 0.05


def test_verify_missing_weight(tmp_path):
    base, adapter = make(tmp_path)
    out = weights.merge(base, adapter, tmp_path / "out")
    (out / "model.safetensors.index.json").unlink()
    weights.find_shards(out)[1].unlink()
    with pytest.raises(ValueError, match=r"out lacks model\..*: merge again"):
        weights.verify(base, adapter, out, CONVERSATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 77.0}),
        ("rms_norm_eps", 0.5),
        ("hidden_size", 96),
        ("tie_word_embeddings", True),
    ],
)
def test_verify_other_config(tmp_path, name, value):
    base, adapter = make(tmp_path)
    out = weights.merge(base, adapter, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(
        ValueError, match=f"computes differently: its config says {name}"
    ):
        weights.verify(base, adapter, out, CONVERSATIONS)
    harmless = {
        "dtype": "bfloat16",
        "transformers_version": "4.0.0",
        "use_cache": False,
    }
    (out / "config.json").write_text(json.dumps(config | harmless))
    assert weights.verify(base, adapter, out, CONVERSATIONS).difference < 2e-3


@pytest.mark.slow
def test_verify_dequantized_in_another_dtype(trained, tmp_path):
    """The base is stored in float16 and was loaded in bfloat16 for the training."""
    _, folder = trained["qlora"]
    adapter = tmp_path / "adapter"
    shutil.copytree(folder, adapter)
    base = models.download("demo")
    as_stored = weights.merge(base, adapter, tmp_path / "a", "dequantized")
    recipe.write(adapter, dtype="bfloat16")
    out = weights.merge(base, adapter, tmp_path / "b", "dequantized")
    found = weights.verify(base, adapter, out, CONVERSATIONS, "dequantized")
    other = weights.verify(base, adapter, as_stored, CONVERSATIONS, "dequantized")
    assert found.difference < 2e-3
    assert other.difference > 10 * found.difference


@pytest.mark.parametrize("conversations", [[], [[]]])
def test_verify_without_tokens(tmp_path, conversations):
    base, adapter = make(tmp_path)
    with pytest.raises(ValueError, match="no tokens to compare on"):
        weights.verify(base, adapter, base, conversations)


FAMILIES = [
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 64}),
    ("smollm3", {"num_hidden_layers": 9, "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("gemma2", {"head_dim": 32}),  # loaded as a whole, as the next one
    ("gemma3_text", {"head_dim": 32}),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=str)
def test_verify_families(tmp_path, capsys, family, config, options):
    base = make_family(tmp_path / "base", family, shard="200KB", **config)
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.3, **options)
    out = weights.merge(base, adapter, tmp_path / "out")
    chats = [[i % 600 for i in ids] for ids in CONVERSATIONS]
    for merged, least in ((base, 1e-2), (out, 0)):
        found = weights.verify(base, adapter, merged, chats)
        adapted, whole = (
            logits_of(*m, chats) for m in ((base, adapter), (merged, None))
        )
        difference = ((whole - adapted).norm() / adapted.norm()).item()
        assert found.difference == pytest.approx(difference, rel=1e-2, abs=1e-6)
        assert found.difference > least
    assert found.difference < 3e-3 and max(found.layers) < 3e-3
    assert len(found.layers) == AutoConfig.from_pretrained(base).num_hidden_layers
    assert ("both are loaded" in capsys.readouterr().out) == ("gemma" in family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_verify_families_dequantized(tmp_path, family):
    base = make_family(tmp_path / "base", family, hidden_size=128, head_dim=32)
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.3)
    out = weights.merge(base, adapter, tmp_path / "out", "dequantized")
    chats = [[i % 600 for i in ids] for ids in CONVERSATIONS]
    found = weights.verify(base, adapter, out, chats, "dequantized")
    other = weights.verify(base, adapter, out, chats)
    assert found.difference < 3e-3 and other.difference > 10 * found.difference


@pytest.mark.parametrize(("family", "layer"), [("smollm3", 3), ("qwen3", 1)])
def test_verify_wrong_weight_of_a_family(tmp_path, family, layer):
    base = make_family(tmp_path / "base", family, num_hidden_layers=5)
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.3)
    out = weights.merge(base, adapter, tmp_path / "out")
    name = {"smollm3": "k_proj", "qwen3": "q_norm"}[family]
    weight = f"model.layers.{layer}.self_attn.{name}.weight"
    change(out, weight, lambda weight: weight.mul_(1.5))
    found = weights.verify(base, adapter, out, [list(range(3, 40))])
    assert found.difference > 1e-2 and found.layers[layer] > 5 * found.layers[layer - 1]


def test_verify_longer_than_the_window(tmp_path):
    base = make_family(tmp_path / "base", "mistral", sliding_window=30)
    adapter = make_adapter(base, tmp_path / "adapter")
    out = weights.merge(base, adapter, tmp_path / "out")
    assert weights.verify(base, adapter, out, [list(range(30))]).difference < 3e-3
    with pytest.raises(ValueError, match=r"31 tokens, .* sees only the last 30"):
        weights.verify(base, adapter, out, [list(range(31)), [5]])


def test_verify_other_family_too_large(tmp_path, monkeypatch):
    base = make_family(tmp_path / "base", "gemma2")
    adapter = make_adapter(base, tmp_path / "adapter")
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(1000))
    with pytest.raises(
        ValueError, match=r"can't be compared: .* there are 0\.0 GiB on"
    ):
        weights.verify(base, adapter, base, [[5]])
