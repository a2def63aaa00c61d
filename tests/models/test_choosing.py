"""A model that can't be trained is refused before its download."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.families import CONFIGS, OTHERS, small
from helpers.processes import PLACES
from transformers import AutoConfig

from colab_utils import models, runtime
from colab_utils.models import choosing
from colab_utils.models.choosing import check_model


@pytest.fixture
def machine(monkeypatch):
    """Return a function that moves to a place, with a GPU or without."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)

    def move(variable: str | None, gpu: bool) -> None:
        if variable:
            monkeypatch.setenv(variable, "x")
        device = "cuda" if gpu else "cpu"
        found = replace(runtime.detect(), device=device)
        monkeypatch.setattr(runtime, "detect", lambda: found)
        # Without a network: the mirror needs no token, its config is not read.
        monkeypatch.setattr(choosing, "load_config", lambda name: small("llama"))
        monkeypatch.setattr(choosing.hub, "token", lambda: None)

    return move


COLAB, KAGGLE = "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"
MIRROR = "NousResearch/Llama-2-7b-hf"


@pytest.mark.parametrize(
    ("place", "gpu", "train", "model", "reason"),
    [
        (None, False, False, "demo", "because there is no GPU"),
        (None, False, True, "demo", "because there is no GPU"),
        (None, True, True, MIRROR, "because there is a GPU"),
        (COLAB, True, True, MIRROR, "because there is a GPU"),
        (COLAB, False, False, MIRROR, "because Colab has a GPU for the next notebook"),
        (KAGGLE, False, False, MIRROR, "because Kaggle has a GPU for the next noteb"),
    ],
)
@pytest.mark.parametrize("name", ["auto", " Auto", "", None, '"auto"'])
def test_resolve_model_auto(machine, capsys, place, gpu, train, model, reason, name):
    machine(place, gpu)
    assert models.resolve_model(name, train) == model
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "switch"),
    [
        (COLAB, "choose Runtime > Change runtime type > T4 GPU, then run again from"),
        (KAGGLE, "choose Settings > Accelerator > GPU T4 x2, then run again from the"),
    ],
)
def test_resolve_model_to_train_without_a_gpu(machine, place, switch):
    machine(place, gpu=False)
    with pytest.raises(RuntimeError, match='MODEL = "auto" is Llama 2 7B on') as error:
        models.resolve_model("auto", train=True)
    assert switch in str(error.value) and 'set MODEL = "demo"' in str(error.value)
    assert models.resolve_model(" demo", train=True) == "demo"


def test_resolve_model_of_a_folder(tmp_path):
    small("qwen2").save_pretrained(tmp_path / "mine")
    name = str(tmp_path / "mine")
    assert models.resolve_model(name) == models.resolve_model(f' "{name}"') == name
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
