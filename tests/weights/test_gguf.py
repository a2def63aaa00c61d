from __future__ import annotations

import copy
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
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from colab_utils import demo, models
from colab_utils.data.chat_template import CHAT_TEMPLATE, without_generation_marks
from colab_utils.weights import gguf as export
from colab_utils.weights import gguf_tokenizer as vocabulary
from colab_utils.weights import modelfile as ollama
from colab_utils.weights import shards as storage

ROOT = Path(__file__).resolve().parents[2]
Q8_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16


@pytest.fixture(autouse=True)
def nobody_watches(headless):
    """No progress bars."""


def make_model(folder: Path, tokenizer, dtype=torch.float16, **changes) -> Path:
    """A small random Llama with grouped heads, as a merged model is saved."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(demo.MODEL)
    config.num_hidden_layers, config.num_key_value_heads = 2, 2
    config.eos_token_id = tokenizer.eos_token_id
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
        save_file(
            {n: torch.randn(t.shape).half() for n, t in load_file(path).items()},
            path,
            metadata={"format": "pt"},
        )
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
    assert len(storage.find_shards(tmp_path / "model")) > 2
    file = export.write_gguf(tmp_path / "model")
    assert_holds(file, expected(model), Q8_0)


def test_transformers_reads_the_same_model_back(model, tmp_path):
    file = export.write_gguf(model, tmp_path / "model.gguf", "f16")
    shutil.copy(model / "config.json", tmp_path)
    ids = torch.arange(50).view(1, -1)
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf_file, dtype=torch.float32
            )(ids).logits
            for folder, gguf_file in ((model, None), (tmp_path, file.name))
        )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("changed", [None, 0, -1])
def test_a_tied_head_that_is_stored_all_the_same(
    tokenizer, tmp_path, monkeypatch, capsys, changed, split
):
    """Equal to the embeddings, or not: what transformers computes is written."""
    monkeypatch.setattr(export, "BLOCK", 40_000)
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
    assert_holds(export.write_gguf(folder, kind="f16"), wanted, F16)
    assert ("the head differs" in capsys.readouterr().out) == (changed is not None)


def test_a_tied_head_in_another_dtype_is_written(tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    head = tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float() / 3
    save_file(tensors, path, metadata={"format": "pt"})
    wanted = expected(folder) | {"output.weight": head.numpy()}
    assert_holds(export.write_gguf(folder, kind="f16"), wanted, F16)


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


def test_of_several_chat_templates_the_default_is_exported(
    model, tokenizer, tmp_path, capsys
):
    folder = with_config(model, tmp_path / "model")
    several = AutoTokenizer.from_pretrained(folder)
    several.chat_template = {"tool_use": "x", "default": CHAT_TEMPLATE}
    several.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template.keys() == {
        "tool_use",
        "default",
    }
    file = export.write_gguf(folder)
    wanted = without_generation_marks(CHAT_TEMPLATE)
    assert read(file)[1]["tokenizer.chat_template"] == wanted
    assert "TEMPLATE" in ollama.write_modelfile(file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def llama_3(make_byte_level):
    return make_byte_level()


def test_a_byte_level_tokenizer(llama_3, tmp_path):
    size = len(llama_3) + 3
    folder = make_model(tmp_path / "model", llama_3, vocab_size=size)
    _, fields = read(export.write_gguf(folder))
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    names = llama_3.convert_ids_to_tokens(range(len(llama_3)))
    assert tokens == [*names, *(f"[PAD{i}]" for i in range(size - 3, size))]
    kind = gguf.TokenType
    assert types[-3:] == [kind.UNUSED] * 3
    assert tokens[-5:-3] == ["<|begin_of_text|>", "<|eot_id|>"]
    assert types[-5:-3] == [kind.CONTROL] * 2
    assert set(types[:-5]) == {kind.NORMAL}
    state = json.loads(llama_3.backend_tokenizer.to_str())
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    assert merges == [tuple(pair) for pair in state["model"]["merges"]]
    assert fields["tokenizer.ggml.add_bos_token"] is True
    bos = fields["tokenizer.ggml.bos_token_id"]
    assert tokens[bos] == "<|begin_of_text|>"
    assert "tokenizer.ggml.unknown_token_id" not in fields
    assert "tokenizer.ggml.scores" not in fields
    assert "tokenizer.chat_template" not in fields


@pytest.mark.parametrize(
    ("template", "prefix"),
    [(CHAT_TEMPLATE, False), ("{{ messages }}", True), ("", True)],
)
def test_transformers_own_tokenizer(tokenizer, tmp_path, capsys, template, prefix):
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    own = LlamaTokenizer(vocab=state["vocab"], merges=merges)
    own.chat_template = template or None
    folder = make_model(tmp_path / "model", own)
    _, fields = read(export.write_gguf(folder))
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is prefix
    assert "add_space_prefix: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pattern": r"\p{L}+|\s+"}, "not as Llama 3 does"),
        ({"normalizer": normalizers.NFC()}, "NFC"),
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "not as Llama 3 does"),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Split(Regex(vocabulary.LLAMA_3), "removed"),
                        pre_tokenizers.ByteLevel(False, use_regex=False),
                    ]
                )
            },
            "Split step",
        ),
        (
            {
                "pre_tokenizer": pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Split(Regex(vocabulary.LLAMA_3), "isolated"),
                        pre_tokenizers.ByteLevel(True, use_regex=False),
                    ]
                )
            },
            "adds a space",
        ),
        ({"ignore_merges": False}, "ignore_merges"),
    ],
    ids=str,
)
def test_other_byte_level_tokenizers_are_refused(
    make_byte_level, tmp_path, changes, named
):
    folder = make_model(tmp_path / "model", make_byte_level(**changes), vocab_size=500)
    with pytest.raises(ValueError, match=named):
        export.write_gguf(folder)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def changed_tokenizer(model: Path, folder: Path, change) -> Path:
    """A copy of the model with another tokenizer.json."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    change(state)
    path.write_text(json.dumps(state), encoding="utf-8")
    return folder


def without_bytes(state: dict) -> None:
    vocab = state["model"]["vocab"]
    vocab["replaced"] = vocab.pop("<0x0A>")


def more_ids(state: dict) -> None:
    state["model"]["vocab"]["more"] = 1024


def more_added(state: dict) -> None:
    entry = state["added_tokens"][0]
    state["added_tokens"].append(entry | {"id": 1024, "content": "<more>"})


def split_spaces(state: dict) -> None:
    state["normalizer"], state["pre_tokenizer"] = (
        None,
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
        | {"split": True},
    )


def lowered(state: dict) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def whole_words(state: dict) -> None:
    state["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_bytes, "lacks 1 of their 256 tokens.*<0x0A>"),
        (more_ids, "ids up to 1024, the model has 1024"),
        (split_spaces, "spaces"),
        (lowered, "Lowercase"),
        (whole_words, "ignores merges"),
    ],
)
def test_tokenizers_that_llama_cpp_would_not_follow(model, tmp_path, change, named):
    folder = changed_tokenizer(model, tmp_path / "model", change)
    with pytest.raises(ValueError, match=named):
        export.write_gguf(folder)


def test_a_token_without_an_embedding_is_left_out(model, tmp_path, capsys):
    folder = changed_tokenizer(model, tmp_path / "model", more_added)
    settings = folder / "tokenizer_config.json"
    made = json.loads(settings.read_text()) | {"pad_token": "<more>"}
    settings.write_text(json.dumps(made))
    file = export.write_gguf(folder)
    assert "left out, for the model has 1,024 embeddings: <more>" in (
        capsys.readouterr().out
    )
    assert_holds(file, expected(model), Q8_0)
    fields = read(file)[1]
    assert len(fields["tokenizer.ggml.tokens"]) == 1024
    assert "tokenizer.ggml.padding_token_id" not in fields
    assert "tokenizer.ggml.eos_token_id" in fields


def test_added_tokens(model, tmp_path, capsys):
    def change(state: dict) -> None:
        entry = state["added_tokens"][0]
        own = {"id": 1024, "content": "<mark>", "special": False, "rstrip": True}
        state["added_tokens"] += [
            entry | own,
            entry | {"id": 1025, "content": "<call>", "special": True},
        ]

    folder = changed_tokenizer(model, tmp_path / "model", change)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1027}))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.zeros(1027, 192).half()
    save_file(tensors, path, metadata={"format": "pt"})
    _, fields = read(export.write_gguf(folder))
    assert fields["tokenizer.ggml.tokens"][1024:] == ["<mark>", "<call>", "[PAD1026]"]
    kind = gguf.TokenType
    wanted = [kind.USER_DEFINED, kind.CONTROL, kind.UNUSED]
    assert fields["tokenizer.ggml.token_type"][1024:] == wanted
    assert "['<mark>']" in capsys.readouterr().out


# --- bad input -----------------------------------------------------------------------


def with_config(model: Path, folder: Path, **changes) -> Path:
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "is a MistralForCausalLM",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "SequenceClassif"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": YARN}, "rope type yarn"),
        (
            {"rope_parameters": YARN | {"rope_type": "dynamic"}},
            "rope type dynamic",
        ),
        (
            {"intermediate_size": 256},
            "down_proj.weight is .192, 512., config.json wants .192, 256.",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 weights .the first is model.layers.2"),
        (
            {"num_hidden_layers": 1},
            "holds model.layers.1.*, which is no weight of",
        ),
        ({"vocab_size": 1000}, "embed_tokens.weight is|lm_head.weight is"),
    ],
    ids=str,
)
def test_models_that_cannot_be_exported(model, tmp_path, changes, named):
    folder = with_config(model, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=named):
        export.write_gguf(folder)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def test_a_config_that_names_no_architecture(model, tmp_path):
    folder = with_config(model, tmp_path / "model", architectures=None)
    assert_holds(export.write_gguf(folder), expected(model), Q8_0)


def test_a_folder_without_a_tokenizer(model, tmp_path):
    folder = with_config(model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing.*Write"):
        export.write_gguf(folder)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def test_what_is_not_there(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        export.write_gguf(tmp_path)
    folder = with_config(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        export.write_gguf(folder)


def test_names_that_cannot_be_taken(model, tmp_path):
    for kind in ("q4_k_m", None, 8):
        with pytest.raises(ValueError, match=f"kind = {kind!r}; it can be: q8_0, f16"):
            export.write_gguf(model, kind=kind)
    for out in (tmp_path / "model.bin", tmp_path):
        with pytest.raises(ValueError, match=r"must be the name of a \.gguf file"):
            export.write_gguf(model, out)


def broken(model: Path, folder: Path, value: float, dtype: torch.dtype) -> Path:
    """A copy of the model with one weight set to `value`."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.gguf"))
    path = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("value", "dtype", "kind", "advice"),
    [
        (float("nan"), torch.float16, "q8_0", "train again"),
        (float("inf"), torch.float32, "f16", "try q8_0"),
        (1e5, torch.bfloat16, "f16", "try q8_0"),
        (-1e8, torch.float32, "q8_0", "train again"),
    ],
)
def test_numbers_that_do_not_fit(model, tmp_path, value, dtype, kind, advice):
    folder = broken(model, tmp_path / "model", value, dtype)
    with pytest.raises(ValueError, match=rf"blk.1.ffn_up.weight .*{advice}"):
        export.write_gguf(folder, kind=kind)
    assert not list(folder.glob("*.gguf*")) and not list(folder.glob(".*"))


def test_what_f16_cannot_hold_fits_q8_0(model, tmp_path):
    folder = broken(model, tmp_path / "model", 1e5, torch.bfloat16)
    assert_holds(export.write_gguf(folder), expected(folder), Q8_0)


def test_quantised_weights_are_refused(model, tmp_path):
    folder = with_config(model, tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight is stored as I8"):
        export.write_gguf(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\x09" * 8],
    ids=["empty", "a pointer of Git LFS", "only a length"],
)
def test_a_file_that_is_no_safetensors(model, tmp_path, text):
    folder = with_config(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()  # it may be a link to the others'
    (folder / "model.safetensors").write_bytes(text)
    with pytest.raises(ValueError, match=f"{len(text)} bytes.: download it again"):
        export.write_gguf(folder)


def test_a_model_in_4_bits_is_named(tmp_path):
    quantised = models.load_model("demo", models.quantization_config())
    quantised.save_pretrained(tmp_path / "model")
    models.load_tokenizer("demo").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="A model in 4 bits or with an adapter"):
        export.write_gguf(tmp_path / "model")


def test_the_kind_may_be_written_as_in_the_files_name(model, tmp_path):
    assert export.write_gguf(model, tmp_path / "a.gguf", "Q8_0").is_file()


def test_the_folder_one_stands_in_has_a_name(model, monkeypatch):
    monkeypatch.chdir(model)
    file = export.write_gguf(Path("."))
    assert file.name == f"{model.name}-Q8_0.gguf"
    file.unlink()


def test_a_file_that_is_cut_short(model, tmp_path):
    folder = with_config(model, tmp_path / "model")
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="cut short"):
        export.write_gguf(folder)
    assert not list(folder.glob(".*"))


def test_a_full_disk_is_seen_before_writing(model, tmp_path, monkeypatch):
    size = sum(tensor.nbytes for tensor in expected(model).values()) // 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, size))
    with pytest.raises(OSError, match=r"model\.gguf needs .* [GM]iB free"):
        export.write_gguf(model, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*"))


def test_an_older_file_is_replaced_only_at_the_end(model, tmp_path, monkeypatch):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"older")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "_convert", stop)
        with pytest.raises(KeyboardInterrupt):
            export.write_gguf(model, out)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes() == b"older"
    export.write_gguf(model, out)
    assert list(tmp_path.iterdir()) == [out] and out.read_bytes()[:4] == b"GGUF"


SLOWLY = """
import sys, time
from pathlib import Path
from colab_utils.weights import gguf as export
convert = export._convert
def slow(tensor, data):
    time.sleep(0.05)
    return convert(tensor, data)
export._convert = slow
export.write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_leaves_nothing_that_looks_finished(model, tmp_path):
    out = tmp_path / "model.gguf"
    part = tmp_path / ".model.gguf.part"
    run = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, model, out],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    while not part.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert part.exists() and not out.exists()
    export.write_gguf(model, out)  # takes the place of what was left
    assert list(tmp_path.iterdir()) == [out]
    assert_holds(out, expected(model), Q8_0)


MEASURE = """
import sys, time
from pathlib import Path
small, large, bench = map(Path, sys.argv[1:])
sys.path.append(str(bench))
from sampling import Sampler
from colab_utils.weights import gguf as export
export.write_gguf(small)  # all is imported
with Sampler() as before:
    time.sleep(0.1)
with Sampler() as while_writing:
    export.write_gguf(large)
print(while_writing.peak["RssAnon"] - before.peak["RssAnon"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_model(model, tokenizer, tmp_path):
    wide = {"hidden_size": 1920, "num_hidden_layers": 1, "vocab_size": 25_000}
    folder = make_model(tmp_path / "model", tokenizer, **wide)
    size = (folder / "model.safetensors").stat().st_size / 2**30
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, model, folder, ROOT / "bench"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.12 < size / 1.5


# --- Ollama --------------------------------------------------------------------------


def test_the_modelfile(model, tmp_path, capsys):
    file = export.write_gguf(model, tmp_path / "my model.gguf")
    path = ollama.write_modelfile(file)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "Modelfile"
    lines = text.splitlines()
    assert lines[0] == "FROM ./my model.gguf"
    assert lines[-3:] == [
        'PARAMETER stop "[INST]"',
        'PARAMETER stop "</s>"',
        "PARAMETER temperature 0",
    ]
    assert text.count('"""') == 2 and "BOS" not in text and "EOS" not in text
    assert capsys.readouterr().out == ""


def test_the_modelfile_of_another_template(llama_3, tmp_path, capsys):
    folder = make_model(tmp_path / "model", llama_3, vocab_size=len(llama_3))
    text = ollama.write_modelfile(export.write_gguf(folder)).read_text()
    assert text == (
        'FROM ./model-Q8_0.gguf\nPARAMETER stop "<|eot_id|>"\nPARAMETER temperature 0\n'
    )
    assert "no chat template: Ollama gives" in capsys.readouterr().out
    llama_3 = copy.deepcopy(llama_3)
    llama_3.chat_template = "{{ messages[0].content }}"
    folder = make_model(tmp_path / "other", llama_3, vocab_size=len(llama_3))
    text = ollama.write_modelfile(export.write_gguf(folder)).read_text()
    assert "TEMPLATE" not in text
    assert "Ollama takes the GGUF's" in capsys.readouterr().out


def test_every_token_that_ends_an_answer_is_a_stop(model, tmp_path):
    folder = with_config(model, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))
    file = export.write_gguf(folder)
    _, fields = read(file)
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.eot_token_id"] == 5  # so llama.cpp stops there, too
    lines = ollama.write_modelfile(file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "stop" in line] == [
        'PARAMETER stop "[INST]"',
        'PARAMETER stop "</s>"',
        'PARAMETER stop "<0x02>"',
    ]


@pytest.mark.parametrize(
    ("end", "written"),
    [('<"end">', '"""<"end">"""'), ("<\n>", None), ('<""">', None)],
)
def test_an_odd_token_that_ends_a_turn(model, tmp_path, end, written):
    def change(state: dict) -> None:
        state["added_tokens"][2]["content"] = end
        vocab = state["model"]["vocab"]
        vocab[end] = vocab.pop("</s>")

    folder = changed_tokenizer(model, tmp_path / "model", change)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": end}))
    file = export.write_gguf(folder)
    if written:
        text = ollama.write_modelfile(file).read_text(encoding="utf-8")
        assert f"PARAMETER stop {written}\n" in text
        return
    with pytest.raises(ValueError, match="A Modelfile cannot hold the token"):
        ollama.write_modelfile(file)
    assert not (folder / "Modelfile").exists()


def test_a_modelfile_needs_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no such thing" * 10)
    with pytest.raises(ValueError, match="magic"):
        ollama.write_modelfile(tmp_path / "model.gguf")
