"""Measure GRPO under a T4's limits: a real small model, and the shape of Llama 2 7B.

    python bench/grpo.py FOLDER/gsm8k-train.jsonl   # SmolLM2-135M learns a format
    python bench/grpo.py --shape [--tiny]           # times and peak of a step of 7B

The small model (built from PyPI by tools/real_model.py) answers questions of gsm8k. The
reward is 1 for an answer that ends with "#### number", as the prompt asks, and 1 more
for the right number. Shares on held-out questions, before and after, with 95 %
intervals. Writes bench/results/grpo.json or grpo_7b.json.

A smoke test on a CPU: `--model demo --steps 1 --prompts 2 --test 4 --tokens 8 --out
/tmp/grpo.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import emulate
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, set_seed
from trl import SFTConfig

from colab_utils import data, evaluation, generation, memory, models, training
from colab_utils.training.rewards import FastGRPOTrainer

BUDGET = (14.56 - 0.3) * memory.GIB
ASK = (
    "\n\nThink in short steps. Then write the final number after ####, like this:"
    "\n#### 42"
)
RESULT = re.compile(r"#### *(-?[\d,]+(?:\.\d+)?)\s*$")
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
TINY = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 1024}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def rows_of(file: str, count: int) -> list[data.Row]:
    """Return rows of gsm8k whose answer is the final number only."""
    found = []
    with Path(file).open(encoding="utf-8") as lines:
        for line in lines:
            raw = json.loads(line)
            truth = raw["answer"].rsplit("####", 1)[1].strip().replace(",", "")
            found.append(
                data.to_row({"question": raw["question"] + ASK, "answer": truth}, 1)
            )
            if len(found) == count:
                break
    return found


def number(answer: str) -> str | None:
    """Return the number after the four hash signs at the end of an answer."""
    found = RESULT.search(answer)
    return found and found[1].replace(",", "")


def reward(rows: list[data.Row], answers: list[str]) -> list[float]:
    """Return 1 for the format, and 1 more for the right number."""
    pairs = zip(rows, map(number, answers), strict=True)
    return [(n is not None) + float(n == data.answer_of(row)) for row, n in pairs]


def learner(model: Any, tokenizer: Any, plan: memory.Plan, **given: Any) -> Any:
    """Return a trainer on the fast path."""
    on_gpu = torch.cuda.is_available()
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": given.pop("prompts"),
        "max_steps": given.pop("steps"),
        "learning_rate": given.pop("rate"),
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "optim": "adamw_8bit" if on_gpu else "adamw_torch",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not on_gpu,
        "disable_tqdm": True,
    }
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    found = FastGRPOTrainer(
        model=get_peft_model(model, lora),
        args=SFTConfig(**settings, **training.precision()),
        processing_class=tokenizer,
        tokens=plan.tokens,
        **given,
    )
    training.float32_adapters(found)
    training.use_fast_path(found, plan)
    return found


def planned(config: Any, longest: int) -> memory.Plan:
    """Return the plan for micro-batches of 2,048 tokens, with a second adapter."""
    on_gpu = torch.cuda.is_available()
    second = 4 * memory.adapter_parameters(config, 16)
    return memory.plan(
        config,
        "qlora",
        16,
        longest=longest,
        update=2048,
        budget=BUDGET - second,
        gpu=on_gpu,
        optimizer="adamw_8bit" if on_gpu else "adamw_torch",
    )


def peak() -> float:
    """Return the largest allocated memory in GiB since the last call; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    found = torch.cuda.max_memory_allocated() / memory.GIB
    torch.cuda.reset_peak_memory_stats()
    return round(found, 2)


def steps_of(trainer: Any) -> dict[str, list[float]]:
    """Return what was logged at each step, by name."""
    log = [one for one in trainer.state.log_history if "reward" in one]
    names = ("reward", "kl", "answers/tokens", "groups without signal")
    names += ("answers/cut off", "seconds/answers")
    return {name: [round(one[name], 3) for one in log] for name in names}


def real(options: argparse.Namespace) -> dict[str, Any]:
    """Train the small model; return shares before and after, times and peak."""
    if not options.model:
        from tools.real_model import build

        options.model = str(build())
    emulate.t4()
    tokenizer = models.load_tokenizer(options.model)
    model = models.load_model(options.model, models.quantization_config())
    rows = rows_of(options.file, options.test + 2000)
    test, train = rows[: options.test], rows[options.test :]
    set_seed(options.seed)
    plan = planned(model.config, 512)
    trainer = learner(
        model,
        tokenizer,
        plan,
        rows=train,
        reward=reward,
        answer_tokens=options.tokens,
        prompts=options.prompts,
        steps=options.steps,
        rate=options.rate,
        beta=0.02,
        writers=128,
    )

    def shares() -> dict[str, str]:
        set_seed(options.seed)
        prompts = [row["messages"][:-1] for row in test]
        given = {"max_new_tokens": options.tokens, "do_sample": True}
        found = generation.answers(
            trainer.model, tokenizer, prompts, batch_size=128, **given
        )
        scores = reward(test, found)
        print(repr(found[0][-200:]))
        return {
            "format": str(evaluation.interval([float(s > 0) for s in scores])),
            "right": str(evaluation.interval([float(s > 1) for s in scores])),
        }

    before = shares()
    print("before", before, flush=True)
    peak()
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    found = {"before": before, "after": shares(), "seconds": round(seconds, 1)}
    found |= {"peak_gib": peak(), "steps": options.steps, "prompts": options.prompts}
    return found | {"group": trainer.group, "log": steps_of(trainer)}


def shape(options: argparse.Namespace) -> dict[str, Any]:
    """Time steps of the shape of 7B: 32 answers of `tokens` tokens each."""
    emulate.t4()
    config = AutoConfig.for_model("llama", **(TINY if options.tiny else LLAMA))
    with tempfile.TemporaryDirectory() as folder:
        emulate.random_model(config, path := Path(folder, "model"))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model = models.load_model(str(path), models.quantization_config())
    plan = planned(config, 512)
    question = "How many are there in all? " * 12
    rows = [data.to_row({"question": question, "answer": "1"}, n) for n in range(1, 65)]
    trainer = learner(
        model,
        models.load_tokenizer("demo"),
        plan,
        rows=rows,
        reward=lambda some, answers: [float(len(one) % 2) for one in answers],
        answer_tokens=options.tokens,
        prompts=4,
        steps=4,
        rate=1e-4,
        writers=32,
    )
    prompt = len(trainer.prompts[0])
    peak()
    trainer.train()
    steps = trainer.state.log_history
    tokens = 32 * (prompt + options.tokens)
    update = memory.seconds(config, "qlora", tokens, plan.recompute, tokens / 32)
    return {
        "prompt_tokens": prompt,
        "answer_tokens": options.tokens,
        "answers_a_step": 32,
        "plan": str(plan),
        "peak_gib": peak(),
        "seconds_in_all": steps[-1]["train_runtime"],
        "seconds_of_an_update_on_a_t4": round(update, 1),
        "log": steps_of(trainer),
    }


def main() -> None:
    """Run one of the two measurements, print it, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="gsm8k-train.jsonl")
    parser.add_argument("--model", default="")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", action="store_true", help="the step of Llama 2 7B")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = shape(options) if options.shape else real(options)
    on_gpu = torch.cuda.is_available()
    result["device"] = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(json.dumps(result, indent=1))
    name = "grpo_7b.json" if options.shape else "grpo.json"
    out = options.out or emulate.RESULTS / name
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
