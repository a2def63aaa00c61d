"""Measure many answers of different lengths: prompts that wait for a row of a batch.

    python bench/answers.py CHECKPOINT [--prompts 500] [--batch 32] [--group 1]
        [--generate 500] [--questions gsm8k-train.jsonl TOKENIZER] [--unsloth]

Prompts have 32 to 128 random tokens, `--group` answers each (8 as in GRPO). The length
of an answer is drawn as gsm8k's answers are long: log-normal, median 100 tokens, at
most 400. With `--questions`, prompts and lengths are those of gsm8k's own rows, in the
tokens of a tokenizer's folder. Greedy, in 4 bits with an adapter. Ways, one after
another in one process: `decode` (a freed row takes the next prompt, equal prompts are
read once), the same decoder where each batch waits for its longest answer, and
`model.generate`, which waits too: for the first `--generate` prompts. Compares the
tokens of the first two. `--unsloth` measures only Unsloth's `generate`.

CHECKPOINT is the folder of the demo model on a CPU (answers of a tenth of the length,
seconds of CPU time), or on a GPU, under a T4's limits, a folder; random weights of
Llama 2 7B's shape are written there if it does not exist. Adds a row to
bench/results/answers.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

if "--unsloth" in sys.argv:
    import unsloth  # noqa: F401  (it patches the other libraries, so it comes first)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import emulate
import ours
import torch
from transformers import LlamaConfig

from colab_utils import memory, models
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.generation import decoding, sampling

GPU = torch.cuda.is_available()
Answers = list[list[int]]


def requests(o: argparse.Namespace, vocabulary: int) -> tuple[Answers, list[int]]:
    """Return the prompts, and the length of each answer."""
    if o.questions:
        return questions(*o.questions, o.prompts // o.group, o.group, vocabulary)
    draw = random.Random(0)
    prompts = []
    for _ in range(o.prompts // o.group):
        size = draw.randint(32, 128)
        prompt = [draw.randrange(3, vocabulary) for _ in range(size)]
        prompts += [prompt] * o.group
    drawn = [draw.lognormvariate(0, 0.5) for _ in prompts]
    middle, most = (100, 400) if GPU else (10, 40)
    return prompts, [max(1, min(most, round(middle * one))) for one in drawn]


def questions(
    file: str, folder: str, count: int, group: int, vocabulary: int
) -> tuple[Answers, list[int]]:
    """Return the first questions of gsm8k, and the number of tokens of each answer."""
    encode = models.load_tokenizer(folder)
    prompts, lengths = [], []
    for line in Path(file).read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        ids = encode(row["question"])["input_ids"]
        prompts += [[i % vocabulary for i in ids]] * group
        lengths += [len(encode(row["answer"])["input_ids"])] * group
    return prompts, lengths


def decoded(
    decoder: StaticDecoder, prompts: Answers, lengths: list[int], wait: bool
) -> Answers:
    """Return the answers; with `wait`, a batch waits for its longest one."""
    found: Answers = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = decoder.rows if wait else len(prompts)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        most = max(lengths[i] for i in rows)

        def add(at: int, token: int, rows=rows, most=most) -> bool:
            found[rows[at]].append(token)
            return len(found[rows[at]]) == (most if wait else lengths[rows[at]])

        some = [prompts[i] for i in rows]
        for _ in decoding.decode(decoder, some, sampling.sampler(), add):
            pass
    return [one[:n] for one, n in zip(found, lengths, strict=True)]


def generated(model, prompts: Answers, lengths: list[int], batch: int) -> None:
    """Generate with transformers, prompts of similar length in a batch."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = max(len(prompts[i]) for i in rows)
        ids = [[0] * (longest - len(prompts[i])) + prompts[i] for i in rows]
        mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows]
        most = max(lengths[i] for i in rows)
        model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=most,
            min_new_tokens=most,
            do_sample=False,
            pad_token_id=0,
        )


def timed(run: Callable[[], Answers | None]) -> tuple[float, Answers | None]:
    """Return the seconds of a call, on a CPU those of CPU time, and what it returns."""
    clock = time.perf_counter if GPU else time.process_time
    if GPU:
        torch.cuda.synchronize()
    began = clock()
    found = run()
    if GPU:
        torch.cuda.synchronize()
    return clock() - began, found


def ours_and_waiting(
    model, o: argparse.Namespace, prompts: Answers, lengths: list[int]
) -> tuple[dict[str, float], int]:
    """Return the seconds of our two ways, and how many of their answers are equal."""
    decoder = StaticDecoder(model, o.batch, max(map(len, prompts)) + max(lengths))
    few = slice(2 * o.batch)
    decoded(decoder, prompts[few], lengths[few], wait=False)  # records the step
    found, answers = {}, []
    for name, wait in (("decode", False), ("batches that wait", True)):
        found[name], some = timed(
            lambda wait=wait: decoded(decoder, prompts, lengths, wait)
        )
        print(name, round(found[name], 1), "s", flush=True)
        answers.append(some)
    return found, sum(map(list.__eq__, *answers))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    for name, default in (
        ("prompts", 500),
        ("batch", 32),
        ("group", 1),
        ("generate", 500),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--questions", nargs=2)
    parser.add_argument("--unsloth", action="store_true")
    o = parser.parse_args()
    emulate.t4()
    if GPU:
        shape = LlamaConfig(intermediate_size=11008, max_position_embeddings=4096)
        emulate.random_model(shape, Path(o.checkpoint))
    build = ours.unsloth if o.unsloth else ours.adapted
    model = build(o.checkpoint, 16)
    prompts, lengths = requests(o, model.config.vocab_size)
    few = slice(o.generate)
    seconds: dict[str, float] = {}
    if not o.unsloth:
        seconds, equal = ours_and_waiting(model, o, prompts, lengths)
        memory.release()  # `generate` needs the memory of the decoder
    name = "unsloth" if o.unsloth else "generate"
    seconds[name], _ = timed(
        lambda: generated(model, prompts[few], lengths[few], o.batch)
    )
    total = sum(lengths)
    row = {**vars(o), "checkpoint": Path(o.checkpoint).name, "tokens": total}
    row["questions"] = "gsm8k" if o.questions else "random"
    for name, taken in seconds.items():
        made = sum(lengths[few]) if name in ("generate", "unsloth") else total
        row[name] = {"s": round(taken, 1), "tokens_s": round(made / taken, 1)}
    if not o.unsloth:
        row["equal answers"] = equal
    print("ANSWERS", json.dumps(row), flush=True)
    card = (
        emulate.card() if GPU else {"card": "CPU", "threads": torch.get_num_threads()}
    )
    emulate.append("answers.json", row | card)


if __name__ == "__main__":
    main()
