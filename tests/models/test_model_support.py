"""A model that can't be trained is refused before its download."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.families import CONFIGS, OTHERS, small
from transformers import AutoConfig

from colab_utils import runtime
from colab_utils.models.support import check_model

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
