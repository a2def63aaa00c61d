"""What several test modules need: the demo model, and a way to train it briefly."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from colab_utils.training.sft import FastSFTTrainer

os.environ.setdefault("MPLBACKEND", "Agg")  # no window, wherever the tests run
# Threads that wait don't spin, or two test runs side by side take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# In CI the same examples every time; new ones are looked for where somebody watches.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def headless(monkeypatch, tmp_path) -> Path:
    """Nobody watches, and the workspace is a fresh folder."""
    monkeypatch.setenv("HEADLESS", "1")
    monkeypatch.setenv("WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture(scope="session")
def tokenizer():
    from colab_utils import models

    return models.load_tokenizer("demo")


@pytest.fixture(scope="session")
def demo_rows() -> list[dict]:
    from colab_utils import data, demo

    return [{"messages": data.to_messages(row)} for row in demo.questions()[:64]]


@pytest.fixture(scope="session")
def model():
    """The demo model in 4 bits; tests read it and don't change it."""
    from colab_utils import models

    return models.load_model("demo", models.quantization_config()).eval()


@pytest.fixture(scope="session")
def make_trainer(tokenizer, demo_rows, tmp_path_factory):
    """Build TRL's trainer as the notebook does, for a base model and a method."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    from colab_utils import models, training
    from colab_utils.training.sft import FastSFTTrainer

    def make(
        method: str,
        base: str = "demo",
        rows: list | None = None,
        kind: type[SFTTrainer] = FastSFTTrainer,
        **settings,
    ):
        quantization = models.quantization_config() if method == "qlora" else None
        lora = LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        usual = {
            "output_dir": str(tmp_path_factory.mktemp("checkpoints")),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "assistant_only_loss": True,
            "gradient_checkpointing": False,
            "optim": "adamw_torch",
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "seed": 0,
        }
        set_seed(0)
        return kind(
            model=models.load_model(base, quantization),
            args=SFTConfig(**usual | training.precision() | settings),
            train_dataset=Dataset.from_list(rows or demo_rows),
            processing_class=tokenizer,
            peft_config=None if method == "full" else lora,
        )

    return make


class Trained:
    """For each method a trainer after two steps and the folder where it was saved.

    `trainer, folder = trained["lora"]` trains only when a test first asks for it.
    """

    def __init__(self, train: Callable[[str], tuple[FastSFTTrainer, Path]]) -> None:
        self.train = functools.cache(train)

    def __getitem__(self, method: str) -> tuple[FastSFTTrainer, Path]:
        return self.train(method)


@pytest.fixture(scope="session")
def trained(make_trainer, tokenizer, tmp_path_factory) -> Trained:
    """Trained models; tests read them and don't change them."""
    from colab_utils import recipe, training

    def train(method: str) -> tuple[FastSFTTrainer, Path]:
        folder = tmp_path_factory.mktemp("adapters") / method
        trainer = make_trainer(method)
        training.float32_adapters(trainer)
        trainer.train()
        training.save(trainer, tokenizer, folder)
        recipe.write(folder, method=method, base_model="demo")
        return trainer, folder

    return Trained(train)


@pytest.fixture(scope="session")
def make_byte_level():
    """Train a small tokenizer of Llama 3's kind on the demo's questions."""
    from tokenizers import Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as pre
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from colab_utils import demo
    from colab_utils.weights.gguf_tokenizer import LLAMA_3

    begin, end = "<|begin_of_text|>", "<|eot_id|>"

    def make(pattern: str = LLAMA_3, ignore_merges=True, **changes):
        backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        cut = pre.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre.Sequence(
            [cut, pre.ByteLevel(False, use_regex=False)]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=480,
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        )
        rows = [str(row) for row in demo.questions()[:300]]
        backend.train_from_iterator(rows, trainer)
        backend.add_special_tokens([begin, end])
        backend.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, backend.token_to_id(begin))]
        )
        for name, value in changes.items():
            setattr(backend, name, value)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=begin, eos_token=end
        )

    return make
