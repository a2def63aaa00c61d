"""Prompts and answers with the tokenizers and chat templates of published families."""

from __future__ import annotations

import pytest
import torch
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from colab_utils import generation, models
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.generation import answering
from colab_utils.generation.prompts import prompt_tokens

# A tokenizer, its chat template, and the token that ends an answer.
CHATS = [
    ("llama2", "llama2", "</s>"),
    ("llama2", "mistral_v1", "</s>"),
    ("llama2", "zephyr", "</s>"),
    ("llama2", "vicuna", "</s>"),
    ("llama3", "llama3", "<|eot_id|>"),
    ("llama3_base", "llama3", "<|eot_id|>"),
    ("smollm2", "chatml", "<|im_end|>"),
    ("smollm2_base", "chatml", "<|im_end|>"),
    ("qwen2", "qwen25", "<|im_end|>"),
    ("qwen2_base", "qwen25", "<|im_end|>"),
    ("qwen3", "qwen3", "<|im_end|>"),
    ("phi3", "phi3", "<|end|>"),
    ("mistral_v3", "mistral_v3", "</s>"),
    ("tekken", "mistral_v3", "</s>"),
    ("gemma", "gemma2", "<end_of_turn>"),
    ("gemma", "gemma3", "<end_of_turn>"),
]
IDS = [f"{kind}-{name}" for kind, name, _ in CHATS]
BOS = {"llama2": "<s>", "phi3": "<s>", "mistral_v3": "<s>", "tekken": "<s>"}
BOS |= {"gemma": "<bos>", "llama3": "<|begin_of_text|>"}
BOS["llama3_base"] = BOS["llama3"]
CONFIGS = {"qwen2": Qwen2Config, "gemma": Gemma2Config, "tekken": MistralConfig}


def load(kind: str, folder, template: str | None = None):
    """Save a family's tokenizer, and load it as the notebooks do."""
    tokenizer = make_tokenizer(kind)
    if template:
        tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(folder)
    return models.load_tokenizer(str(folder))


def prompt_ids(tokenizer, system: str = "") -> list[int]:
    messages = generation.as_messages("Why?", system)
    return prompt_tokens(Conversations(tokenizer), messages, 10, 1000)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize(("kind", "template", "end"), CHATS, ids=IDS)
def test_prompt_has_one_bos_token_or_none(kind, template, end, system, tmp_path):
    tokenizer = load(kind, tmp_path, template)
    ids = prompt_ids(tokenizer, system)
    text = tokenizer.decode(ids)
    assert "Why?" in text and system in text
    raw = tokenizer("Why?")["input_ids"]
    if bos := BOS.get(kind):
        number = tokenizer.convert_tokens_to_ids(bos)
        assert ids[0] == raw[0] == number
        assert ids.count(number) == raw.count(number) == 1
    else:
        assert "<|endoftext|>" not in text
        assert raw == tokenizer("Why?", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["llama2", "llama3", "smollm2_base", "qwen2_base"])
def test_prompt_in_the_format_of_the_course(kind, tmp_path):
    tokenizer = load(kind, tmp_path)
    text = tokenizer.decode(prompt_ids(tokenizer))
    assert text.replace(" ", "") == BOS.get(kind, "") + "[INST]Why?[/INST]"


@pytest.mark.parametrize("kind", ["qwen3"])
def test_prompt_without_thinking(kind, tmp_path):
    tokenizer = load(kind, tmp_path, kind)
    assert tokenizer.decode(prompt_ids(tokenizer)).endswith("</think>\n\n")


def small_model(kind: str, tokenizer):
    """Return a tiny random model of a family, with more embeddings than tokens."""
    torch.manual_seed(0)
    config = CONFIGS.get(kind, LlamaConfig)(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def say(monkeypatch, tokens: list[int]) -> None:
    """Let `generation` choose these tokens after one prompt."""
    steps = iter(torch.tensor(tokens)[:, None])
    monkeypatch.setattr(answering, "sampler", lambda **_: lambda logits: next(steps))


@pytest.mark.parametrize(("kind", "template", "end"), CHATS, ids=IDS)
def test_answers_end_at_the_end_of_a_turn(kind, template, end, tmp_path, monkeypatch):
    tokenizer = load(kind, tmp_path, template)
    model = small_model(kind, tokenizer)
    end, paris = (
        tokenizer.convert_tokens_to_ids(end),
        tokenizer.encode("Paris Lima", add_special_tokens=False),
    )
    assert end in models.stop_tokens(model, tokenizer)
    eos = tokenizer.eos_token_id
    size = len(paris)
    cut_off = tokenizer.decode(paris[:2]).strip()
    for said, answer in (([*paris, end], "Paris Lima"), ([*paris[:2], eos], cut_off)):
        say(monkeypatch, [*said, *paris])
        assert generation.answers(model, tokenizer, ["Why?"], 2 * size) == [answer]
    say(monkeypatch, [*paris, end, *paris])
    pieces = list(generation.stream(model, tokenizer, "Why?", 2 * size))
    assert "".join(pieces) == "Paris Lima"
    assert len(pieces) == size + 1  # one for each token, and the one that ends it


def test_answers_end_at_the_stops_of_generation_config(tmp_path, monkeypatch):
    """Llama 3.1 ends a tool call with <|eom_id|>, which no answer in the data has."""
    tokenizer = load("llama3", tmp_path, "llama3")
    model = small_model("llama3", tokenizer)
    stop = tokenizer.convert_tokens_to_ids("<|eom_id|>")
    paris = tokenizer.encode("Paris", add_special_tokens=False)
    for eos, answer in ((None, "ParisParis"), ([stop], "Paris")):
        model.generation_config.eos_token_id = eos
        say(monkeypatch, [*paris, stop, *paris])
        found = generation.answers(model, tokenizer, ["Why?"], 2 * len(paris) + 1)
        assert found == [answer]
