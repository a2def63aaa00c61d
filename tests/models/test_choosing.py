"""A model that can't be trained is refused before its download."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.families import CONFIGS, OTHERS, small
from transformers import AutoConfig

from colab_utils import models, runtime
from colab_utils.models.choosing import check_model


def test_resolve_model_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert models.resolve_model("auto") == "demo"
    assert "no GPU" in capsys.readouterr().out


def test_resolve_model_of_a_folder(tmp_path):
    small("qwen2").save_pretrained(tmp_path / "mine")
    name = str(tmp_path / "mine")
    assert models.resolve_model(name) == name
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="mine is a mixtral model, and it is a mixtu"):
        models.resolve_model(name)
    with pytest.raises(FileNotFoundError, match="'no/such/folder' is neither"):
        models.resolve_model("no/such/folder")


REFUSED = {
    "phi3": r"(it has gate_up_proj, qkv_proj)",
    "mixtral": "it is a mixture of experts",
    "qwen3_moe": "it is a mixture of experts",
    "gpt_oss": "it is a mixture of experts",
    "gemma3": "it reads more than text",
    "mistral3": "it reads more than text",
    "t5": "it has an encoder",
    "gpt2": "its layers are not a Llama's",
    "mamba": "its layers are not a Llama's",
    "gemma4_text": "its layers are not a Llama's",
    "qwen3_5_text": "not all of its 8,953,803,264 parameters",
}


@pytest.mark.parametrize(("kind", "reason"), REFUSED.items(), ids=REFUSED)
def test_check_model_refuses(kind, reason):
    with pytest.raises(ValueError) as error:
        check_model(AutoConfig.for_model(kind), "some/model")
    text = str(error.value)
    assert text.startswith(f"some/model is a {kind} model, and ") and reason in text
    assert text.endswith("choose another MODEL.")


@pytest.mark.parametrize("name", CONFIGS)
def test_check_model_of_a_family(name, capsys):
    check_model(small(name), "some/model")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", OTHERS)
def test_check_model_without_fast_path(name, capsys):
    check_model(small(name), "some/model")
    out = capsys.readouterr().out
    assert out.startswith(f"{small(name).model_type}: trains without the fast path")
    assert "float16" not in out


@pytest.mark.parametrize(("dtype", "warned"), [("float16", True), ("bfloat16", False)])
def test_check_model_that_overflows(dtype, warned, monkeypatch, capsys):
    machine = replace(runtime.detect(), dtype=dtype)
    monkeypatch.setattr(runtime, "detect", lambda: machine)
    check_model(small("gemma3"), "some/model")
    out = capsys.readouterr().out
    assert ("gemma3_text: its activations are known to exceed float16" in out) == warned
