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

from colab_utils import weights


def test_write_modelfile_course_template(llama, tmp_path, capsys):
    file = weights.write_gguf(llama, tmp_path / "my model.gguf")
    path = weights.write_modelfile(file)
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
        'PARAMETER stop "[INST]"',
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
