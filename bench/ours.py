"""The project's training and decoding, as `speed.py` and `decode.py` measure them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig
from trl import SFTConfig

from colab_utils import memory, models, runtime, training
from colab_utils.fast.decoder import borrow_decoder, make_decoder
from colab_utils.fast.lora import LINEARS
from colab_utils.generation import decoding
from colab_utils.generation.answer_text import AnswerText
from colab_utils.generation.answering import generate_tokens
from colab_utils.training.sft import FastSFTTrainer

runtime.quiet()  # sets torch's allocator, so it comes before torch takes memory


def lora(rank: int) -> LoraConfig:
    """Return the config of an adapter on all linear layers."""
    return LoraConfig(
        r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def trainer_of(checkpoint: str, o: dict, ds: Any, config: dict, callbacks: list):
    """Build TRL's trainer as 02_finetune_qlora does."""
    emulate.t4()
    training.prepare_fast_path(AutoConfig.from_pretrained(checkpoint))
    trainer = FastSFTTrainer(
        model=models.load_model(checkpoint, models.quantization_config()),
        processing_class=models.load_tokenizer(checkpoint),
        train_dataset=ds,
        callbacks=callbacks,
        args=SFTConfig(**config, gradient_checkpointing=False),
        peft_config=lora(o["r"]),
    )
    training.float32_adapters(trainer)
    trainer.recovery.used = True  # another plan would hide what this one needs
    return trainer


def planned(given: tuple, recompute: int, offload: int = 0, fast: bool = True):
    """Build a trainer from the arguments `given` of `trainer_of`, with this plan."""
    trainer, o = trainer_of(*given), given[1]
    tokens, cost = o["bs"] * o["seq"], memory.Memory()
    plan = memory.Plan(tokens, o["ga"], recompute, offload, fast, cost)
    training.use_fast_path(trainer, plan)
    return trainer


def fast(*given: Any):
    """Build a trainer on the fast path, with K checkpointed layers (recompute=K)."""
    return planned(given, int(given[1].get("recompute", 0)))


def lean(*given: Any):
    """Build a trainer on the fast path with the least memory.

    All layers use gradient checkpointing; their inputs and the embeddings are in RAM.
    """
    return planned(given, 10**6, offload=10**6)


def plain(*given: Any):
    """Build a trainer on the reference path, with K checkpointed layers."""
    return planned(given, int(given[1].get("recompute", 0)), fast=False)


def adapted(checkpoint: str, rank: int):
    """Return the 4-bit model with an adapter on all linear layers whose B is not 0."""
    model = models.load_model(checkpoint, models.quantization_config())
    model = get_peft_model(model, lora(rank))
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(weight.shape, generator=draw) * 0.01
            value = noise.to(weight.device) if "lora_B" in name else weight.data
            weight.data = value.to(model.dtype)
    return model.eval()


def unsloth(checkpoint: str, rank: int):
    """Return Unsloth's model for inference, as its notebooks load it, with an adapter.

    Unsloth must be imported before transformers.
    """
    from unsloth import FastLanguageModel

    emulate.limit()
    model, _ = FastLanguageModel.from_pretrained(
        checkpoint,
        max_seq_length=2048,
        dtype=torch.float16,
        load_in_4bit=True,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model, r=rank, target_modules=list(LINEARS), lora_alpha=16, lora_dropout=0
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.full_like(weight, 0.01, dtype=torch.float16)
    FastLanguageModel.for_inference(model)
    return model


def looped(model, **given):
    """Return a function (ids, count) that decodes exactly `count` tokens greedily."""

    def run(ids: torch.Tensor, count: int) -> torch.Tensor:
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            **given,
        )
        return out[:, ids.shape[1] :]

    return run


def decode(checkpoint: str, o: dict):
    """Return a function (ids, count) that decodes new tokens (rows, count).

    It decodes as `generation` does: one row as in `stream`, with a cache of 2,048
    tokens, several rows as in `answers`.
    """
    emulate.t4()
    model, tokenizer = adapted(checkpoint, o["r"]), models.load_tokenizer(checkpoint)
    room = max(o["prompt"] + o["new"], o["long"] + 1)
    made: list[list[int]] = []

    def choose(scores: torch.Tensor) -> torch.Tensor:
        made.append(tokens := scores.argmax(-1))
        return tokens

    def generate(ids: torch.Tensor, count: int) -> torch.Tensor:
        made.clear()
        # Without stop tokens each answer has exactly `count` tokens.
        texts = [AnswerText(tokenizer, (), [], count) for _ in ids]
        if o["batch"] == 1:
            with borrow_decoder(model, 2048) as decoder:
                for _ in generate_tokens(decoder, ids[0].tolist(), choose, texts[0]):
                    texts[0].stable_text()
        else:
            decoder = several if len(ids) > 1 else make_decoder(model, 1, room)
            add = lambda i, token: texts[i].add(token)  # noqa: E731
            for _ in decoding.decode(decoder, ids.tolist(), choose, add):
                pass
        [text.finish() for text in texts]
        return torch.stack(made, 1)

    several = make_decoder(model, o["batch"], room) if o["batch"] > 1 else None
    return generate
