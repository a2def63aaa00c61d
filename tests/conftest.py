"""Set up every test run, and hold the fixtures that several test modules share."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from colab_utils.training.sft import FastSFTTrainer

os.environ.setdefault("MPLBACKEND", "Agg")  # draw figures without opening a window
# Idle threads sleep. Spinning ones make two test runs on a machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read by torch and NumPy when they are imported, and by the programs that tests start:
# the workers of pytest-xdist share the cores instead of each taking all of them.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    threads = max(1, (os.cpu_count() or 1) // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
# As `tools.execute.load_papermill` does: tests that import nbformat start 3 s earlier.
sys.modules.setdefault("rfc3987_syntax", None)
# Hypothesis tries the same examples in each CI run, and new ones in a local run.
settings.register_profile("ci", derandomize=True)
# `make test-fast` tries fewer: it runs before each commit.
# A busy machine is no reason to fail.
settings.register_profile(
    "fast", max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the GPU tests; with several workers, start with the longest files."""
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker("gpu")
    if WORKERS > 1:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(
            key=lambda item: (
                item.path.parent.name != "notebooks",
                -slow[item.path],
                str(item.path),
            )
        )


def pytest_collection() -> None:
    """Import the large libraries as notebooks do, in a faster way."""
    gc.disable()  # there is no garbage in imports
    if WORKERS > 1 and "PYTEST_XDIST_WORKER" in os.environ:
        from colab_utils import libraries

        libraries.load()


def pytest_collection_finish() -> None:
    """Keep what has been imported out of each later garbage collection: it stays."""
    gc.enable()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let Python find everything again: triton lists what is left when it ends."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests before their fixtures are built."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU with CUDA, and torch finds none")


@pytest.fixture
def headless(monkeypatch, tmp_path) -> Path:
    """Run headless, with a new folder as the workspace; returns that folder."""
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
    """The demo model in 4 bits. It is shared: a test must not change it."""
    from colab_utils import models

    return models.load_model("demo", models.quantization_config()).eval()


@pytest.fixture(scope="session")
def make_trainer(tokenizer, demo_rows, tmp_path_factory):
    """Build TRL's trainer as the notebook does, for a base model and a method."""
    from datasets import Dataset
    from helpers.training import ON_CPU
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
        trained_rows: list[int] | None = None,
        **settings,
    ):
        quantization = models.quantization_config() if method == "qlora" else None
        lora = LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            trainable_token_indices=trained_rows,
        )
        usual = ON_CPU | {
            "output_dir": str(tmp_path_factory.mktemp("checkpoints")),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "assistant_only_loss": True,
            "optim": "adamw_torch",
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
    """For each method: a trainer after two steps, and the folder where it was saved.

    `trainer, folder = trained["lora"]` trains only when a test first asks for it.
    """

    def __init__(self, train: Callable[[str], tuple[FastSFTTrainer, Path]]) -> None:
        self.train = functools.cache(train)

    def __getitem__(self, method: str) -> tuple[FastSFTTrainer, Path]:
        return self.train(method)


@pytest.fixture(scope="session")
def trained(make_trainer, tokenizer, tmp_path_factory) -> Trained:
    """Trained models that tests share: a test must not change them."""
    import torch

    from colab_utils import recipe, training

    def train(method: str) -> tuple[FastSFTTrainer, Path]:
        folder = tmp_path_factory.mktemp("adapters") / method
        # A test may ask for it inside of inference_mode, where nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad():
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
    from colab_utils.weights.gguf_pretokenizer import LLAMA_3

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
