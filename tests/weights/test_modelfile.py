"""Ollama's Modelfile."""

from __future__ import annotations

import copy
import json

import pytest
from helpers.checkpoints import make_model
from helpers.gguf_files import (
    read,
    with_config,
    with_tokenizer,
)
from helpers.templates import FAMILIES, TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer

from colab_utils import weights
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.weights.go_template import find_parts


def test_write_modelfile_course_template(llama, tmp_path, capsys):
    file = weights.write_gguf(llama, tmp_path / "my model.gguf")
    path = weights.write_modelfile(file)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "Modelfile"
    lines = text.splitlines()
    assert lines[0] == "FROM ./my model.gguf"
    assert lines[-2:] == ['PARAMETER stop "</s>"', "PARAMETER temperature 0"]
    assert text.count('TEMPLATE """') == 1 and '{{ "</s><s>[INST] " }}' in text
    assert "else }}<s>" not in text  # Ollama writes the first one
    assert capsys.readouterr().out == ""


SYSTEM = {"role": "system", "content": 'Be "short".'}
TURNS = [
    {"role": "user", "content": "What is the capital of Peru?"},
    {"role": "assistant", "content": "Lima."},
    {"role": "user", "content": "And {{ of }} \n日本?"},
    {"role": "assistant", "content": "Tokyo."},
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [1, 3, 5])
@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=len)
def test_find_parts_renders_the_same(name, turns, system):
    tokenizer = make_tokenizer(FAMILIES[name][0])
    tokenizer.chat_template = TEMPLATES[name]
    parts = find_parts(tokenizer)
    assert parts
    chat = [*system, *TURNS[:turns]]
    chats = Conversations(tokenizer)  # moves a system message that is not taken
    assert parts.render(chat) == chats.render(chats.prepare(chat), prompt=True)
    # Llama 2's and Mistral's models generate the space before an answer.
    spaces = {"llama2": (" ", " "), "mistral_v3": (" ", ""), "vicuna": (" ", "")}
    assert parts.spaces == spaces.get(name)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}",
        "{% for m in messages %}{{ m.role if loop.last }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role ~ loop.index ~ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_find_parts_of_another_kind(llama_3, template):
    llama_3 = copy.deepcopy(llama_3)
    llama_3.chat_template = template
    assert find_parts(llama_3) is None


@pytest.fixture(scope="module")
def llama_3(make_byte_level):
    return make_byte_level()


def test_write_modelfile_other_template(llama_3, tmp_path, capsys):
    folder = make_model(tmp_path / "model", llama_3, vocab_size=len(llama_3))
    text = weights.write_modelfile(weights.write_gguf(folder)).read_text()
    assert text == (
        'FROM ./model-Q8_0.gguf\nPARAMETER stop "<|eot_id|>"\nPARAMETER temperature 0\n'
    )
    assert "no chat template; Ollama sends" in capsys.readouterr().out
    llama_3 = copy.deepcopy(llama_3)
    llama_3.chat_template = "{{ messages[0].content }}"
    folder = make_model(tmp_path / "other", llama_3, vocab_size=len(llama_3))
    text = weights.write_modelfile(weights.write_gguf(folder)).read_text()
    assert "TEMPLATE" not in text
    assert "Ollama converts the GGUF file's own" in capsys.readouterr().out


def test_write_modelfile_of_a_base_in_chatml(tmp_path, capsys):
    """SmolLM2 base: its EOS token is not the one that ends a turn."""
    tokenizer = make_tokenizer("smollm2_base")
    tokenizer.chat_template = TEMPLATES["chatml"]
    folder = make_model(tmp_path / "model", tokenizer, vocab_size=len(tokenizer))
    file = weights.write_gguf(folder)
    _, fields = read(file)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|endoftext|>"
    assert tokens[fields["tokenizer.ggml.eot_token_id"]] == "<|im_end|>"
    text = weights.write_modelfile(file).read_text(encoding="utf-8")
    assert 'stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n' in text
    assert "Be a helpful assistant." in text
    assert "the date" not in capsys.readouterr().out


def test_write_modelfile_with_a_date(tmp_path, capsys):
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = TEMPLATES["llama3"]
    folder = make_model(tmp_path / "model", tokenizer, vocab_size=len(tokenizer))
    text = weights.write_modelfile(weights.write_gguf(folder)).read_text()
    assert "Today Date: " in text and "<|begin_of_text|>" not in text
    assert "it stays that of today" in capsys.readouterr().out


def test_write_modelfile_several_eos_tokens(llama, tmp_path):
    folder = with_config(llama, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))
    file = weights.write_gguf(folder)
    _, fields = read(file)
    assert fields["tokenizer.ggml.eos_token_id"] == 2
    assert fields["tokenizer.ggml.eot_token_id"] == 5  # llama.cpp stops there, too
    lines = weights.write_modelfile(file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "stop" in line] == [
        'PARAMETER stop "</s>"',
        'PARAMETER stop "<0x02>"',
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "written"),
    [('<"end">', '"""<"end">"""'), ("<\n>", None), ('<""">', None)],
)
def test_write_modelfile_eos_token_with_quotes(llama, tmp_path, end, written):
    def change(state: dict) -> None:
        state["added_tokens"][2]["content"] = end
        vocab = state["model"]["vocab"]
        vocab[end] = vocab.pop("</s>")

    folder = with_tokenizer(llama, tmp_path / "model", change)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": end}))
    file = weights.write_gguf(folder)
    if written:
        text = weights.write_modelfile(file).read_text(encoding="utf-8")
        assert f"PARAMETER stop {written}\n" in text
        return
    with pytest.raises(ValueError, match="A Modelfile cannot hold the token"):
        weights.write_modelfile(file)
    assert not (folder / "Modelfile").exists()


def test_write_modelfile_not_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no such thing" * 10)
    with pytest.raises(ValueError, match="magic"):
        weights.write_modelfile(tmp_path / "model.gguf")
