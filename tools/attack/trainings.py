"""The trainings under attack: of the demo model, with a checkpoint after each step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from colab_utils import data, demo, hub, recipe, training
from tools.attack.parts import VERSIONS, Part

STEPS = 3


class Training(Part):
    """A training of three steps with a checkpoint after each, and `training.save`."""

    place, cost = Path("adapters/mine"), 0
    work = (
        "checkpoints",
        ".checkpoints.lock",
        "reference.safetensors",
        ".reference.safetensors",
    )

    def __init__(self, inputs: Path, root: Path) -> None:
        super().__init__(inputs, root)
        self.trainers: dict[str, Any] = {}
        self.on_checkpoint: Callable[[int], None] = lambda step: None

    @abstractmethod
    def build(self, version: str) -> Any:
        """Return a trainer whose seed is that of the version."""

    def load(self) -> None:
        """Load a model for each version, with a new adapter."""
        self.trainers = {version: self.build(version) for version in VERSIONS}

    def rehearse(self) -> None:
        """Train once elsewhere, then load new models."""
        super().rehearse()
        self.load()

    def write(self, version: str) -> None:
        """Train, or resume a training, then save the adapter as notebooks do."""
        from transformers import TrainerCallback

        class Saved(TrainerCallback):
            """Tell which checkpoints are complete."""

            def on_save(_, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.on_checkpoint(state.global_step)

        trainer = self.trainers[version]
        folder = self.out
        checkpoints = folder / "checkpoints"
        trainer.args.output_dir = str(checkpoints)
        training.show_progress(trainer, save_minutes=0)
        trainer.add_callback(Saved())
        self.before(version, folder)
        point = training.resume_point(checkpoints, {"data": version, "epochs": 1})
        trainer.train(resume_from_checkpoint=point)

        def describe(new: Path) -> None:
            hub.write_card(new, {}, "mine", version)
            recipe.write(new, name="mine", version=version)

        training.save(trainer, trainer.processing_class, folder, describe)
        training.remove_checkpoints(checkpoints)
        self.after(folder)

    def before(self, version: str, folder: Path) -> None:
        """Do what precedes the training."""

    def after(self, folder: Path) -> None:
        """Do what follows the training."""


def _settings(version: str, **more: Any) -> Any:
    from transformers import set_seed
    from trl.trainer.sft_config import SFTConfig

    seed = VERSIONS.index(version)
    set_seed(seed)  # of A
    usual: dict[str, Any] = {
        "output_dir": "unused",  # `write` sets it
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return SFTConfig(**usual | training.precision() | more)


def _trainer(
    kind: Any, version: str, settings: dict[str, Any], tokenizer: Any, **given: Any
) -> Any:
    from peft import LoraConfig

    from colab_utils import memory, models

    args = _settings(version, **settings)
    trainer = kind(
        model=models.load_model("demo", models.quantization_config()),
        args=args,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        **given,
    )
    training.float32_adapters(trainer)
    plan = memory.Plan(256, 1, 0, False, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    return trainer


class SFT(Training):
    """Supervised fine-tuning of the demo model with QLoRA, on the fast path."""

    name = "SFT training"

    def build(self, version: str) -> Any:
        """Return a `FastSFTTrainer`."""
        from datasets import Dataset as Rows

        from colab_utils import models
        from colab_utils.training.sft import FastSFTTrainer

        tokenizer = models.load_tokenizer("demo")
        rows = [data.to_row(row, 1) for row in demo.questions()[:32]]
        packed: dict[str, Any] = {"packing": True, "max_length": 128}
        packed["per_device_train_batch_size"] = 1
        tokens = Rows.from_list(data.tokenize(rows, tokenizer))
        return _trainer(
            FastSFTTrainer, version, packed, tokenizer, train_dataset=tokens
        )


class DPO(Training):
    """Direct preference optimization of the demo model with QLoRA, on the fast path."""

    name = "DPO training"

    def build(self, version: str) -> Any:
        """Return a `FastDPOTrainer`."""
        from datasets import Dataset as Rows

        from colab_utils import models
        from colab_utils.training.pairs import tokenize
        from colab_utils.training.preferences import FastDPOTrainer

        tokenizer = models.load_tokenizer("demo")
        asked = [data.to_row(raw, 1) for raw in demo.questions(wordings=1)[:8]]
        pairs = []
        for line, row in enumerate(asked):
            pair = {"prompt": data.prompt_of(row), "chosen": data.answer_of(row)}
            pair["rejected"] = f"Well, who knows: {data.answer_of(asked[line - 1])}"
            pairs.append(data.to_row(pair, line + 1))
        tokens = Rows.from_list(cast("list[Any]", tokenize(pairs, tokenizer)))
        size = {"per_device_train_batch_size": 2}
        return _trainer(FastDPOTrainer, version, size, tokenizer, train_dataset=tokens)

    def before(self, version: str, folder: Path) -> None:
        """Compute the reference's log-probabilities, or read them."""
        self.trainers[version].score_reference(self._file(folder))

    def after(self, folder: Path) -> None:
        """Remove the file of the log-probabilities, as notebook 09 does."""
        self._file(folder).unlink(missing_ok=True)

    @staticmethod
    def _file(folder: Path) -> Path:
        return folder / "reference.safetensors"


class GRPO(Training):
    """Reinforcement learning of the demo model with QLoRA, on the fast path."""

    name = "GRPO training"

    def build(self, version: str) -> Any:
        """Return a `FastGRPOTrainer`, whose reward is a short answer."""
        from colab_utils import models
        from colab_utils.training.rewards import FastGRPOTrainer

        return _trainer(
            FastGRPOTrainer,
            version,
            {"per_device_train_batch_size": 2},
            models.load_tokenizer("demo"),
            rows=[data.to_row(row, 1) for row in demo.questions()[:32]],
            reward=_brevity,
            answer_tokens=4,
            group=4,
        )


def _brevity(rows: list[Any], answers: list[str]) -> list[float]:
    return [-float(len(answer)) for answer in answers]
