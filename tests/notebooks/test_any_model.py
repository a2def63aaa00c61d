"""The whole course on a tiny random model of each family in docs/models.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.families import CONFIGS, small
from helpers.run_course_on import courses
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

pytestmark = pytest.mark.slow
# By name: the config, the tokenizer, the chat template (None: the course's).
MODELS: dict[str, tuple[str, str, str | None]] = {
    "Llama 2": ("llama", "llama2", None),
    "Llama 2 chat": ("llama", "llama2", "llama2"),
    "Llama 3.x": ("llama 3.2", "llama3", "llama3"),
    "Mistral v0.1": ("mistral", "llama2", "mistral_v1"),
    "Mistral v0.3": ("mistral v0.3", "mistral_v3", "mistral_v3"),
    "Mistral with Tekken": ("mistral v0.3", "tekken", "mistral_v3"),
    "Qwen2.5": ("qwen2", "qwen2", "qwen25"),
    "Qwen3": ("qwen3", "qwen3", "qwen3"),
    "SmolLM2": ("llama 3.2", "smollm2", "chatml"),
    "SmolLM2 base": ("llama 3.2", "smollm2_base", None),
    "SmolLM3": ("smollm3", "smollm2", "chatml"),
    "Gemma 2": ("gemma2", "gemma", "gemma2"),
}
TOWNS = ("Akersund", "Brillon", "Caldmere", "Dorvik", "Elmstad", "Farrow", "Gorlitz")


def make_model(folder: Path, config: str, kind: str, template: str | None) -> None:
    """Save a tiny random model with its tokenizer and chat template."""
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = template and TEMPLATES[template]
    changes = {
        "vocab_size": len(tokenizer) + 3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4 if config == "smollm3" else 2,
        "head_dim": 16 if config != "qwen3" else 32,
        "max_position_embeddings": 1024,
    }
    if config == "mistral":
        changes["sliding_window"] = 512
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        small(config, **changes), dtype=torch.float32
    )
    made.half().save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """Write rows with and without a system message, and with several turns."""
    rows = []
    for i, town in enumerate(TOWNS * 6):
        turns = [{"role": "user", "content": f"What is house {i} in {town} made of?"}]
        if i % 3 == 0:
            turns.insert(0, {"role": "system", "content": "Answer in a sentence."})
        answer = f"House {i} is made of {'oak' if i % 2 else 'stone'} and lime."
        turns.append({"role": "assistant", "content": answer})
        if i % 4 == 0:
            turns.append({"role": "user", "content": f"And house {i + 100}?"})
            turns.append({"role": "assistant", "content": "It is made of clay, too."})
        rows.append(json.dumps({"messages": turns}))
    path = tmp_path_factory.mktemp("data") / "houses.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def results(dataset, tmp_path_factory) -> dict[str, dict]:
    """What the course found on each model, in one process."""
    root = tmp_path_factory.mktemp("models")
    folders = [root / name.replace(" ", "-") for name in MODELS]
    for folder, model in zip(folders, MODELS.values(), strict=True):
        make_model(folder / "model", *model)
    found = warm.run(courses, folders, dataset)
    return dict(zip(MODELS, found, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_course_runs_on(name, results):
    found, losses = results[name], results[name]["losses"]
    known = MODELS[name][0] in CONFIGS
    assert found["fast"] == known == bool(found["gguf"]) == bool(found["stops"])
    assert losses["fast"] == pytest.approx(losses["PEFT"], rel=1e-3)
    assert found["difference"] < 1e-2
