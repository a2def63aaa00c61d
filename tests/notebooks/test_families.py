"""Run notebook 03 with tiny random models of other families than the demo's."""

from __future__ import annotations

from pathlib import Path

import papermill
import pytest
import torch
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Qwen2Config,
)

from colab_utils import models, recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# A config, a tokenizer and its chat template.
MODELS = {
    "biases, no BOS token": (Qwen2Config, "qwen2", "qwen25"),  # no head_dim either
    "no system prompt": (Gemma2Config, "gemma", "gemma2"),  # reference decoding
}


def write_adapter(workspace: Path, config, kind: str, template: str) -> None:
    """Write a base model and an adapter as 02 does."""
    base, folder = workspace / "base", workspace / "adapters" / "my-adapter"
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    sizes = config(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(sizes)
    model.save_pretrained(base)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder)
    models.load_tokenizer(str(base)).save_pretrained(folder)
    results = {"accuracy": {"base": 0.0, "tuned": 0.5}}
    made = {"method": "lora", "rank": 4, "base_model": str(base), "results": results}
    recipe.write(folder, **made)


@pytest.mark.parametrize("model", MODELS)
def test_03_runs_with_another_family(model, tmp_path, headless):
    write_adapter(headless, *MODELS[model])
    papermill.execute_notebook(
        ROOT / "notebooks" / "03_inference.ipynb",
        tmp_path / "executed.ipynb",
        parameters={"MAX_NEW_TOKENS": 4},
        cwd=ROOT,
        progress_bar=False,
    )
