"""A merged model with a head: transformers' pipeline loads it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from colab_utils import demo, models, weights
from colab_utils.weights import classifier

TEXTS = ["People in Kenya speak Swahili.", "Hello", "The capital of Peru is Lima."]
NAMES = ["a b", 'é"\n', "c", "", "日本", "LABEL_0"]


@pytest.fixture
def merged(tmp_path):
    """The demo model with its tokenizer, as if merged."""
    folder = tmp_path / "merged"
    shutil.copytree(demo.MODEL, folder)
    models.load_tokenizer("demo").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    return torch.randn(6, 192, generator=torch.Generator().manual_seed(0))


def split(folder) -> None:
    """Store the weights of a model in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({n: tensors[n] for n in names}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(names, name)
    text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def expected(head: torch.Tensor) -> torch.Tensor:
    """The probabilities of each class, by the base model and the head."""
    model, tokenizer = models.load_model("demo").float(), models.load_tokenizer("demo")
    found = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            state = model.model(ids).last_hidden_state[0, -1]
        found.append((head @ state).softmax(0))
    return torch.stack(found)


def by_pipeline(folder) -> torch.Tensor:
    classify = pipeline(
        "text-classification", str(folder), device="cpu", dtype=torch.float32
    )
    found = classify(TEXTS, top_k=None, batch_size=3)  # padded
    scores = [{one["label"]: one["score"] for one in each} for each in found]
    return torch.tensor([[each[name] for name in NAMES] for each in scores])


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_pipeline_gives_the_probabilities_of_the_head(merged, head, shards):
    before = load_file(merged / "model.safetensors")
    if shards == 2:
        split(merged)
    weights.write_classifier(merged, torch.zeros_like(head), NAMES, 0)
    weights.write_classifier(merged, head, NAMES, 0)  # again: another head
    torch.testing.assert_close(by_pipeline(merged), expected(head), rtol=0, atol=1e-5)
    stored = {}
    for file in weights.find_shards(merged):
        stored |= load_file(file)
    assert torch.equal(stored.pop("score.weight"), head)
    assert stored.keys() == before.keys()
    assert all(torch.equal(stored[name], before[name]) for name in before)


def test_config_of_a_classifier(merged, head):
    weights.write_classifier(merged, head, NAMES, 5)
    config = json.loads((merged / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"].values()) == NAMES
    assert config["label2id"]["日本"] == 4
    assert config["pad_token_id"] == 5
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]


@pytest.mark.parametrize("shape", [(5, 192), (6, 191)])
def test_head_of_another_shape_is_refused(merged, shape):
    with pytest.raises(ValueError, match=r"6 labels and the model's width need \(6, 1"):
        weights.write_classifier(merged, torch.zeros(shape), NAMES, 0)
    assert not (merged / "score.safetensors").exists()


def test_family_without_a_classifier_is_refused(merged, head):
    config = json.loads((merged / "config.json").read_text("utf-8"))
    (merged / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match="no classifier for the family mamba"):
        weights.write_classifier(merged, head, NAMES, 0)
    assert not (merged / "score.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "names", "message"),
    [
        ({}, ["a", "b", "a"], "3 labels have 2 different names"),
        ({}, ["a"], "1 labels have 1 different names"),
        ({"hidden_size": None}, ["a", "b"], "has no hidden_size"),
        ({"model_type": None}, ["a", "b"], "no classifier for the family None"),
    ],
)
def test_names_and_configs_that_no_classifier_can_have_are_refused(
    merged, fields, names, message
):
    config = json.loads((merged / "config.json").read_text("utf-8"))
    config = {name: x for name, x in config.items() if name not in fields}
    (merged / "config.json").write_text(json.dumps(config))
    before = sorted(merged.iterdir())
    with pytest.raises(ValueError, match=message):
        weights.write_classifier(merged, torch.zeros(len(names), 192), names, 0)
    assert sorted(merged.iterdir()) == before


def test_a_folder_with_only_a_head_is_refused(merged, head):
    (merged / "model.safetensors").rename(merged / "score.safetensors")
    before = (merged / "score.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"no weights but score\.safetensors"):
        weights.write_classifier(merged, head, NAMES, 0)
    assert (merged / "score.safetensors").read_bytes() == before


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("step", ["recipe.write_json", "read_header", "change_json"])
def test_a_killed_call_loses_nothing(merged, head, shards, step, monkeypatch):
    if shards == 2:
        split(merged)
    before = {
        n: x for f in weights.find_shards(merged) for n, x in load_file(f).items()
    }

    def kill(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"{classifier.__name__}.{step}", kill)
        with pytest.raises(KeyboardInterrupt):
            weights.write_classifier(merged, torch.zeros_like(head), NAMES, 0)
    found = {n: x for f in weights.find_shards(merged) for n, x in load_file(f).items()}
    assert found.keys() - {"score.weight"} == before.keys()
    weights.write_classifier(merged, head, NAMES, 0)
    found = {n: x for f in weights.find_shards(merged) for n, x in load_file(f).items()}
    assert torch.equal(found.pop("score.weight"), head)
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_an_index_that_is_half_written_when_killed_is_not_seen(
    merged, head, monkeypatch
):
    split(merged)
    index = merged / "model.safetensors.index.json"
    before, write = index.read_bytes(), type(index).write_text

    def half(path, text, **kwargs):
        write(path, text[: len(text) // 2], **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(index), "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            weights.write_classifier(merged, head, NAMES, 0)
    assert index.read_bytes() == before
