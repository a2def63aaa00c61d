from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import gguf
import jinja2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from colab_utils import demo, export, merging, vocabulary
from colab_utils.models import CHAT_TEMPLATE

ROOT = Path(__file__).resolve().parents[1]
Q8_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16


@pytest.fixture(autouse=True)
def nobody_watches(headless):
    """No progress bars."""


def make_model(folder: Path, tokenizer, dtype=torch.float16, **changes) -> Path:
    """A small random Llama with grouped heads, as a merged model is saved."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(demo.MODEL)
    config.num_hidden_layers, config.num_key_value_heads = 2, 2
    for name, value in changes.items():
        setattr(config, name, value)
    config.dtype = dtype
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "small", tokenizer)


def weights(folder: Path) -> dict[str, np.ndarray]:
    """transformers' weights in 32 bits, under transformers' names."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp wants them: of each head 0, half, 1, half + 1, ..."""
    half = len(weight) // heads // 2
    order = [
        head * 2 * half + i + part * half
        for head in range(heads)
        for i in range(half)
        for part in (0, 1)
    ]
    return weight[order]


def expected(folder: Path) -> dict[str, np.ndarray]:
    """What the GGUF file must hold, in 32 bits, by llama.cpp's own table of names."""
    config = AutoConfig.from_pretrained(folder)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = {}
    for name, weight in weights(folder).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, count in heads.items():
            if part in name:
                weight = rotated(weight, count)
        found[table.get_name(name, try_suffixes=(".weight", ".bias"))] = weight
    return found


def read(file: Path) -> tuple[dict[str, np.ndarray], dict]:
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def assert_holds(file: Path, wanted: dict[str, np.ndarray], kind) -> None:
    tensors, _ = read(file)
    assert tensors.keys() == wanted.keys()
    for name, weight in wanted.items():
        found = tensors[name]
        assert list(found.shape) == list(weight.shape[::-1])
        if weight.ndim == 1:
            assert found.tensor_type == gguf.GGMLQuantizationType.F32
            assert np.array_equal(found.data, weight)
            continue
        assert found.tensor_type == kind, name
        whole = gguf.quants.quantize(weight, kind)  # all at once
        assert found.data.tobytes() == whole.tobytes(), name


# --- weights -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", export.KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [1, 40_000, 2 << 20])
def test_weights_are_the_references_bit_for_bit(
    tokenizer, tmp_path, monkeypatch, kind, dtype, block
):
    folder = make_model(tmp_path / "model", tokenizer, dtype)
    monkeypatch.setattr(export, "BLOCK", block)
    file = export.write_gguf(folder, kind=kind)
    assert file == folder / f"model-{kind.upper()}.gguf"
    assert_holds(file, expected(folder), {"q8_0": Q8_0, "f16": F16}[kind])


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
def test_llamas_of_every_shape(tokenizer, tmp_path, changes):
    folder = make_model(tmp_path / "model", tokenizer, **changes)
    if changes.get("attention_bias"):  # they begin at zero
        path = folder / "model.safetensors"
        save_file({n: torch.randn(t.shape).half() for n, t in load_file(path).items()},
                  path, metadata={"format": "pt"})
    file = export.write_gguf(folder, kind="f16")
    assert_holds(file, expected(folder), F16)
    _, fields = read(file)
    config = AutoConfig.from_pretrained(folder)
    assert fields["llama.attention.key_length"] == config.head_dim
    assert fields["llama.attention.head_count_kv"] == config.num_key_value_heads
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == config.vocab_size == fields["llama.vocab_size"]
    unused = fields["tokenizer.ggml.token_type"].count(gguf.TokenType.UNUSED)
    assert unused == config.vocab_size - 1024


def test_a_model_in_several_files(tokenizer, model, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "model", max_shard_size="500KB")
    tokenizer.save_pretrained(tmp_path / "model")
    assert len(merging.find_shards(tmp_path / "model")) > 2
    file = export.write_gguf(tmp_path / "model")
    assert_holds(file, expected(model), Q8_0)


def test_a_tied_head_that_is_stored_all_the_same(tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path) | {"lm_head.weight": torch.zeros(1024, 192).half()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(16)
    save_file(tensors, path, metadata={"format": "pt"})
    file = export.write_gguf(folder)
    assert "output.weight" not in read(file)[0]


def test_rows_that_q8_0_cannot_cut_stay_f16(tokenizer, tmp_path, capsys):
    folder = make_model(tmp_path / "model", tokenizer, intermediate_size=500)
    tensors, _ = read(export.write_gguf(folder))
    kinds = {name: tensor.tensor_type for name, tensor in tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == F16
    assert kinds["blk.0.ffn_up.weight"] == Q8_0
    assert "f16: 2 weights" in capsys.readouterr().out


@given(st.integers(1, 6), st.integers(1, 8), st.sampled_from([32, 64]), st.data())
def test_any_numbers_are_quantised_like_the_whole(heads, half, width, data):
    rows = heads * half * 2
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    size = data.draw(st.sampled_from([1e-8, 1e-3, 1, 1e3]))
    weight = (draw.standard_normal((rows, width)) * size).astype(np.float32)
    weight[draw.random((rows, width)) < 0.3] = 0
    for kind in ("F32", "F16", "Q8_0"):
        tensor = export.Tensor("w", Path(), 0, "F32", weight.shape, kind, half * 2)
        out = export._convert(tensor, bytearray(weight.tobytes()))
        whole = rotated(weight, heads)
        code = gguf.GGMLQuantizationType[kind]
        assert out.tobytes() == gguf.quants.quantize(whole, code).tobytes()


# --- metadata ------------------------------------------------------------------------


def test_metadata(model):
    _, fields = read(export.write_gguf(model))
    config = AutoConfig.from_pretrained(model)
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


ROPE = {"rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_rope_scaling(tokenizer, tmp_path, kind, older):
    given = ROPE if kind == "llama3" else {"rope_theta": 2e4, "factor": 2.0}
    rope = given | {"rope_type": kind}
    folder = make_model(tmp_path / "model", tokenizer, rope_parameters=rope)
    if older:  # as transformers 4 wrote it
        path = folder / "config.json"
        fields = json.loads(path.read_text())
        rope = fields.pop("rope_parameters")
        fields["rope_theta"], fields["rope_scaling"] = rope.pop("rope_theta"), rope
        path.write_text(json.dumps(fields))
    tensors, fields = read(export.write_gguf(folder))
    assert fields["llama.rope.freq_base"] == given["rope_theta"]
    config = AutoConfig.from_pretrained(folder)
    if kind == "linear":
        assert fields["llama.rope.scaling.type"] == "linear"
        assert fields["llama.rope.scaling.factor"] == 2
        assert "rope_freqs.weight" not in tensors
        return
    plain = given["rope_theta"] ** -(np.arange(0, 32, 2) / 32)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = tensors["rope_freqs.weight"].data
    assert factors.dtype == np.float32 and 1 < factors.max() <= 8
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)


# --- tokenizers ----------------------------------------------------------------------


def test_the_demos_tokenizer(model, tokenizer):
    _, fields = read(export.write_gguf(model))
    assert fields["tokenizer.ggml.model"] == "llama"
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(1024))
    types = fields["tokenizer.ggml.token_type"]
    kind = gguf.TokenType
    assert types[:3] == [kind.UNKNOWN, kind.CONTROL, kind.CONTROL]
    assert types[3:259] == [kind.BYTE] * 256 and tokens[3:5] == ["<0x00>", "<0x01>"]
    assert set(types[259:]) == {kind.NORMAL}
    assert fields["tokenizer.ggml.bos_token_id"] == 1
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.unknown_token_id"] == 0
    assert fields["tokenizer.ggml.padding_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.add_eos_token"] is False
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    # A token is preferred the more, the earlier its merge.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"], strict=True))
    order = [scores["".join(pair)] for pair in state["model"]["merges"]]
    assert order == sorted(order, reverse=True) and len(set(order)) == len(order)
    assert max(scores[token] for token in tokens[:300]) < min(order)


TURNS = [
    {"role": "system", "content": " Be short. "},
    {"role": "user", "content": "Capital of Peru?"},
    {"role": "assistant", "content": "Lima."},
    {"role": "user", "content": "And of Chad?"},
    {"role": "assistant", "content": "N'Djamena."},
]


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:2], TURNS[:2], TURNS[1:4]])
def test_the_chat_template_renders_the_same(model, tokenizer, turns):
    _, fields = read(export.write_gguf(model))
    template = fields["tokenizer.chat_template"]
    assert "generation" not in template
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(
        messages=turns, bos_token="<s>", eos_token="</s>"
    )
    assert text == tokenizer.apply_chat_template(turns, tokenize=False)


def byte_level(pattern: str = vocabulary.LLAMA_3, **changes) -> PreTrainedTokenizerFast:
    """A small tokenizer of Llama 3's kind."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(__import__("tokenizers").Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(demo_sentences(), trainer)
    backend.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    for name, value in changes.items():
        setattr(backend, name, value)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def demo_sentences() -> list[str]:
    return [json.dumps(row) for row in demo.questions()[:200]]
