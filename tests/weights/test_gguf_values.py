"""The weights and settings in a GGUF file, compared with gguf's own quantization."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers.checkpoints import make_family, make_model
from helpers.gguf_files import (
    F16,
    Q8_0,
    assert_holds,
    expected,
    read,
    rotated,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from colab_utils import weights
from colab_utils.weights import gguf_blocks
from colab_utils.weights.gguf import KINDS
from colab_utils.weights.gguf_layout import Tensor


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1, 40_000, 2 << 20])
def test_write_gguf_equals_reference(
    tokenizer, tmp_path, monkeypatch, kind, dtype, block
):
    folder = make_model(tmp_path / "model", tokenizer, dtype)
    monkeypatch.setattr(gguf_blocks, "BLOCK", block)
    file = weights.write_gguf(folder, kind=kind)
    assert file == folder / f"model-{kind.upper()}.gguf"
    assert_holds(file, expected(folder), {"q8_0": Q8_0, "f16": F16}[kind])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 6},
        {"head_dim": 16},
        {"head_dim": 64, "num_key_value_heads": 3},
        {"attention_bias": True, "mlp_bias": True},
        {"vocab_size": 1100},
    ],
    ids=str,
)
def test_write_gguf_shapes(tokenizer, tmp_path, changes):
    folder = make_model(tmp_path / "model", tokenizer, **changes)
    if changes.get("attention_bias"):  # biases are zero by default
        path = folder / "model.safetensors"
        save_file(
            {n: torch.randn(t.shape).half() for n, t in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )
    file = weights.write_gguf(folder, kind="f16")
    assert_holds(file, expected(folder), F16)
    _, fields = read(file)
    config = AutoConfig.from_pretrained(folder)
    assert fields["llama.attention.key_length"] == config.head_dim
    assert fields["llama.attention.head_count_kv"] == config.num_key_value_heads
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == config.vocab_size == fields["llama.vocab_size"]
    unused = fields["tokenizer.ggml.token_type"].count(gguf.TokenType.UNUSED)
    assert unused == config.vocab_size - 1024


ROPE = {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}
FAMILIES = [
    ("mistral", {"sliding_window": 512}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 64}),
    ("smollm3", {"num_hidden_layers": 9, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_write_gguf_families(tokenizer, tmp_path, capsys, family, changes):
    folder = make_family(tmp_path / "model", family, vocab_size=1024, **changes)
    tokenizer.save_pretrained(folder)
    file = weights.write_gguf(folder, kind="f16")
    assert_holds(file, expected(folder), F16)
    _, fields = read(file)
    name = fields["general.architecture"]
    assert name == {"mistral": "llama"}.get(family, family)
    windowed = "sliding_window" in changes
    assert fields[f"{name}.context_length"] == (512 if windowed else 1024)
    assert ("the model's sliding window" in capsys.readouterr().out) == windowed


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("smollm3", {"no_rope_layer_interval": 3}, r"layers \[2, 5\] without a rotary"),
        ("smollm3", {"no_rope_layers": [1] * 6}, r"layers \[\] without a rotary"),
        ("smollm3", {"attention_bias": True}, "a bias of q_proj, k_proj, v_proj, o_pr"),
        ("qwen3", {"attention_bias": True}, "for qwen3 does not support a bias of q_"),
        ("qwen2", {"rope_parameters": ROPE | {"rope_type": "llama3"}}, "type llama3"),
    ],
    ids=str,
)
def test_write_gguf_unsupported_in_family(tokenizer, tmp_path, family, changes, named):
    folder = make_family(
        tmp_path / "model", family, vocab_size=1024, num_hidden_layers=6, **changes
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=named):
        weights.write_gguf(folder)


def test_write_gguf_several_shards(tokenizer, llama, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(llama)
    loaded.save_pretrained(tmp_path / "model", max_shard_size="500KB")
    tokenizer.save_pretrained(tmp_path / "model")
    assert len(weights.find_shards(tmp_path / "model")) > 2
    file = weights.write_gguf(tmp_path / "model")
    assert_holds(file, expected(llama), Q8_0)


def test_write_gguf_read_by_transformers(llama, tmp_path):
    file = weights.write_gguf(llama, tmp_path / "model.gguf", "f16")
    shutil.copy(llama / "config.json", tmp_path)
    ids = torch.arange(50).view(1, -1)
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf_file, dtype=torch.float32
            )(ids).logits
            for folder, gguf_file in ((llama, None), (tmp_path, file.name))
        )
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("changed", [None, 0, -1])
def test_write_gguf_tied_head_that_is_stored(
    tokenizer, tmp_path, monkeypatch, capsys, changed, split
):
    """A head that differs from the embeddings is written: transformers uses it."""
    monkeypatch.setattr(gguf_blocks, "BLOCK", 40_000)
    folder = make_model(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    if changed is not None:
        head[changed, changed] += 1
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    if split:
        path = path.rename(folder / "body.safetensors")
        places = dict.fromkeys(tensors, path.name)
        places["lm_head.weight"] = "head.safetensors"
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
        name = folder / places["lm_head.weight"]
        save_file({"lm_head.weight": head}, name, metadata={"format": "pt"})
    else:
        tensors["lm_head.weight"] = head
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.lm_head.weight.half(), head)
    wanted = expected(folder)
    if changed is not None:
        wanted["output.weight"] = head.float().numpy()
    assert_holds(weights.write_gguf(folder, kind="f16"), wanted, F16)
    assert ("the head differs" in capsys.readouterr().out) == (changed is not None)


def test_write_gguf_tied_head_in_another_dtype(tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float() / 3
    save_file(tensors, path, metadata={"format": "pt"})
    wanted = expected(folder) | {"output.weight": head.numpy()}
    assert_holds(weights.write_gguf(folder, kind="f16"), wanted, F16)


def test_write_gguf_rows_not_a_multiple_of_32(tokenizer, tmp_path, capsys):
    folder = make_model(tmp_path / "model", tokenizer, intermediate_size=500)
    tensors, _ = read(weights.write_gguf(folder))
    kinds = {name: tensor.tensor_type for name, tensor in tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == F16
    assert kinds["blk.0.ffn_up.weight"] == Q8_0
    assert "f16: 2 weights" in capsys.readouterr().out


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(1, 8), st.sampled_from([32, 64]), st.data())
def test_convert_any_numbers(heads, half, width, data):
    rows = heads * half * 2
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = data.draw(st.sampled_from([1e-8, 1e-3, 1, 1e3]))
    weight = (draw.standard_normal((rows, width)) * size).astype(np.float32)
    weight[draw.random((rows, width)) < 0.3] = 0
    for kind in ("F32", "F16", "Q8_0"):
        tensor = Tensor("w", Path(), 0, "F32", weight.shape, kind, half * 2)
        out = gguf_blocks.convert(tensor, bytearray(weight.tobytes()))
        whole = rotated(weight, heads)
        code = gguf.GGMLQuantizationType[kind]
        assert out.tobytes() == gguf.quants.quantize(whole, code).tobytes()


def broken(llama: Path, folder: Path, value: float, dtype: torch.dtype) -> Path:
    """Copy a model with one weight set to `value`."""
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_write_gguf_large_numbers_in_q8_0(llama, tmp_path):
    folder = broken(llama, tmp_path / "model", 1e5, torch.bfloat16)
    assert_holds(weights.write_gguf(folder), expected(folder), Q8_0)


@pytest.mark.parametrize(
    ("value", "dtype", "kind", "advice"),
    [
        (float("nan"), torch.float16, "q8_0", "train again"),
        (float("inf"), torch.float32, "f16", "try q8_0"),
        (1e5, torch.bfloat16, "f16", "try q8_0"),
        (-1e8, torch.float32, "q8_0", "train again"),
    ],
)
def test_write_gguf_numbers_that_do_not_fit(
    llama, tmp_path, value, dtype, kind, advice
):
    folder = broken(llama, tmp_path / "model", value, dtype)
    with pytest.raises(ValueError, match=rf"blk.1.ffn_up.weight .*{advice}"):
        weights.write_gguf(folder, kind=kind)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def test_write_gguf_metadata(llama):
    _, fields = read(weights.write_gguf(llama))
    config = AutoConfig.from_pretrained(llama)
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "small"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert fields["llama.context_length"] == 1024
    assert fields["llama.embedding_length"] == 192
    assert fields["llama.block_count"] == 2
    assert fields["llama.feed_forward_length"] == 512
    assert fields["llama.attention.head_count"] == 6
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == config.head_dim == 32
    assert fields["llama.rope.freq_base"] == 10000
    epsilon = fields["llama.attention.layer_norm_rms_epsilon"]
    assert epsilon == pytest.approx(1e-5)
    assert "llama.rope.scaling.type" not in fields


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_write_gguf_rope_scaling(tokenizer, tmp_path, kind, older):
    given = ROPE if kind == "llama3" else {"rope_theta": 2e4, "factor": 2.0}
    rope = given | {"rope_type": kind}
    folder = make_model(tmp_path / "model", tokenizer, rope_parameters=rope)
    if older:  # the format of transformers 4
        path = folder / "config.json"
        fields = json.loads(path.read_text())
        rope = fields.pop("rope_parameters")
        fields["rope_theta"], fields["rope_scaling"] = rope.pop("rope_theta"), rope
        path.write_text(json.dumps(fields))
    tensors, fields = read(weights.write_gguf(folder))
    assert fields["llama.rope.freq_base"] == given["rope_theta"]
    config = AutoConfig.from_pretrained(folder)
    if kind == "linear":
        assert fields["llama.rope.scaling.type"] == "linear"
        assert fields["llama.rope.scaling.factor"] == 2
        assert "rope_freqs.weight" not in tensors
        return
    unscaled = given["rope_theta"] ** -(np.arange(0, 32, 2) / 32)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = tensors["rope_freqs.weight"].data
    assert factors.dtype == np.float32 and 1 < factors.max() <= 8
    np.testing.assert_allclose(unscaled / factors, scaled.numpy(), rtol=1e-5)
