"""Continuations of token ids equal those of transformers' `generate`."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from colab_utils import generation, models

TEXTS = ["The capital of France", "People in Spain speak", "In", "The currency of"]


def reference(model, tokenizer, prompt: list[int], count: int) -> str:
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, max_new_tokens=count, pad_token_id=tokenizer.pad_token_id
        )
    new = out[0, len(prompt) :].tolist()
    new = new[: new.index(2)] if 2 in new else new
    pieces = "".join(tokenizer.convert_ids_to_tokens(new))
    return pieces.replace("▁", " ")


@pytest.fixture
def marked(tokenizer):
    """The demo model with added tokens whose rows are trained, and its tokenizer."""
    tokenizer = models.load_tokenizer("demo")
    model = models.load_model("demo")
    ids = models.add_tokens(model, tokenizer, ["<a>", "<b>"])
    lora = LoraConfig(
        init_lora_weights=False,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    )
    torch.manual_seed(0)
    model = get_peft_model(model, lora).eval()
    for name, weight in model.named_parameters():
        if "trainable_tokens" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model, tokenizer


@pytest.mark.parametrize("count", [1, 12])
def test_continuations_equal_generate(marked, count):
    model, tokenizer = marked
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    prompts += [[1, 1024, *prompt[1:], 1025] for prompt in prompts]
    found = generation.continuations(model, tokenizer, prompts, count, batch_size=3)
    assert found == [reference(model, tokenizer, prompt, count) for prompt in prompts]
    assert any(text.startswith(" ") for text in found)


def test_continuations_end_at_eos_and_of_no_prompts(tokenizer):
    model = models.load_model("demo")
    page = tokenizer("Paris is the capital of France.")["input_ids"]
    (text,) = generation.continuations(model, tokenizer, [page], 100)
    assert text.endswith(".") and "<" not in text
    assert generation.continuations(model, tokenizer, []) == []
