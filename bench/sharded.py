"""Train models with their 4-bit weights sharded over the GPUs of one machine.

    python bench/sharded.py [--tiny] [PART ...]

Each GPU is limited like a T4, or to 24 GiB in parts that say so. For each part: write a
model of random weights, load it in one process for each GPU, and train some steps under
DistributedDataParallel. "whole" loads the model into every process. "host" sends the
bytes between the GPUs through RAM, as on machines without peer access. Prints a row for
each part: the peak of each GPU and the planned one, tokens a second, the losses, the
bytes gathered. Adds the rows to bench/results/sharded.json. `--tiny` tests the script
on a CPU with two processes, and writes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from colab_utils import runtime

# Each process of this script sees all GPUs, and takes one by its number.
os.environ.setdefault(runtime.ALL_GPUS, runtime.EVERY)
runtime.quiet()  # sets torch's allocator, so it comes before torch takes memory

import emulate
import ours
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig

from colab_utils import memory, models
from colab_utils.fast import lora, patch
from colab_utils.fast.sharding import Shards
from colab_utils.memory import costs
from colab_utils.memory.planning import save_memory
from colab_utils.memory.step import Step
from colab_utils.shape import Shape

RANK, TOKENS, WARM, STEPS = 16, 2048, 2, 10
SHAPES: dict[str, dict[str, Any]] = emulate.LLAMA_2 | {
    "34B": {  # Code Llama 34B
        "hidden_size": 8192,
        "intermediate_size": 22016,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 16384,
    },
    "70B": {  # Llama 2 70B; needs four GPUs
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
LENGTHS = {"13B": 4096, "70B": 512}  # tokens of a row; TOKENS of the others
PARTS = ("7B whole", "7B", "7B host", "13B", "34B", "34B host")
MORE = ("70B", "70B 24GiB")  # only when they are asked for


def step_of(config: Any, shards: int, gpu: bool, tokens: int) -> Step:
    """Return the step with the fewest checkpointed layers that fit a T4.

    DistributedDataParallel holds its buckets, which are the gradients, all the time.
    """
    step = Step(
        Shape.from_config(config),
        "qlora",
        RANK,
        tokens if gpu else 64,
        fast=True,
        accumulating=True,
        gpu=gpu,
        packed=False,
        optimizer="adamw_8bit" if gpu else "adamw_torch",
        shards=shards,
    )
    return save_memory(step, emulate.CAP * memory.GIB)


def work(rank: int, count: int, port: int, folder: Path, part: str, out: Path) -> None:
    """Train in one of `count` processes, and write its measurements."""
    gpu = torch.cuda.is_available()
    if "24GiB" in part:
        emulate.CAP = 24
    if gpu:
        torch.cuda.set_device(rank)
        emulate.t4()
        if torch.cuda.get_device_capability() >= (9, 0):
            costs.CUBLAS = 2 * 32 * 2**20
    address = f"tcp://127.0.0.1:{port}"
    given: dict[str, Any] = {"init_method": address, "rank": rank, "world_size": count}
    given["timeout"] = timedelta(minutes=3)
    if gpu:
        given["device_id"] = torch.device("cuda", rank)
    dist.init_process_group("nccl" if gpu else "gloo", **given)
    whole, began = "whole" in part, time.time()
    config = models.load_config(str(folder))
    tokens = LENGTHS.get(part, TOKENS)
    step = step_of(config, 1 if whole else count, gpu, tokens)
    if whole and gpu:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=models.torch_dtype(), device_map={"": rank}
        )
    elif whole:
        model = models.load_model(str(folder))
    else:
        model = models.load_sharded(str(folder))
    found: dict[str, Any] = {"load_s": round(time.time() - began, 1)}
    found |= {"load_ram_gib": round(memory.ram(), 2)}
    if gpu:
        found["load_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    torch.manual_seed(0)
    model = get_peft_model(model, ours.lora(RANK)).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    inner = lora.llama(model)
    assert patch.apply(model, step.recompute, step.offload)
    found |= train(model, inner, step, rank, gpu)
    found["ram_gib"] = round(memory.ram(), 2)
    # Unlike a T4's, the attention kernel of this GPU accumulates one gradient.
    here = replace(step, accumulators=1) if gpu else step
    found |= {"recompute": step.recompute, "offload": step.offload}
    found |= {"planned_gib": round(here.peak().peak / memory.GIB, 2)}
    found |= {"planned_on_t4_gib": round(step.peak().total / memory.GIB, 2)}
    if not whole:
        wire = memory.gathered_bytes(step.shape, count)
        found["planned_gathered_gb"] = round(wire / 1e9, 4)
        found["planned_pcie_s"] = round(memory.gather_seconds(step.shape, count), 3)
    found |= emulate.card() if gpu else {}
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def train(model: Any, inner: Any, step: Step, rank: int, gpu: bool) -> dict[str, Any]:
    """Train on one row of random tokens, which the loss should learn."""
    device, shards = inner.lm_head.weight.device, Shards.of(inner)
    parallel = DistributedDataParallel(
        model,
        device_ids=[rank] if gpu else None,
        gradient_as_bucket_view=True,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    if gpu:
        import bitsandbytes as bnb

        optimizer = bnb.optim.AdamW8bit(trained, lr=2e-4)
    else:
        optimizer = torch.optim.AdamW(trained, lr=2e-4)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=gpu)
    draw = torch.Generator().manual_seed(rank)
    words = step.shape.vocab
    ids = torch.randint(3, words, (1, step.tokens), generator=draw).to(device)
    losses, seconds, before = [], [], 0
    for i in range(WARM + STEPS):
        if i == WARM and gpu:
            torch.cuda.reset_peak_memory_stats()
        if gpu:
            torch.cuda.synchronize()
        dist.barrier()
        before, began = shards.received if shards else 0, time.time()
        with torch.autocast(device.type, torch.float16, enabled=gpu):
            loss = parallel(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)  # they are the buckets of DDP
        losses.append(round(loss.item(), 4))
        seconds.append(time.time() - began)
    found: dict[str, Any] = {"losses": losses, "tokens": step.tokens}
    found["step_s"] = round(statistics.median(seconds[WARM:]), 4)
    found["scale"] = scaler.get_scale()
    if shards:
        found["gathered_gb"] = round((shards.received - before) / 1e9, 4)
    if gpu:
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        found["outside_torch_gib"] = round((total - free - reserved) / 2**30, 2)
    sums = [p.detach().double().sum().item() for p in trained]
    found["adapter_sum"] = sum(sums)  # equal in every process, as DDP keeps them
    return found


def measure(part: str, folder: Path, count: int) -> dict[str, Any]:
    """Start the processes of a part, and return their measurements as one row."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ["NCCL_P2P_DISABLE"] = "1" if "host" in part else "0"
    with tempfile.TemporaryDirectory() as out:
        given = (count, port, folder, part, Path(out))
        torch.multiprocessing.spawn(work, given, nprocs=count)
        rows = [json.loads((Path(out) / f"{i}.json").read_text()) for i in range(count)]
    row = {"part": part, "gpus": count, **rows[0]}
    row["losses_by_process"] = [one["losses"] for one in rows]
    row["equal_adapters"] = len({one["adapter_sum"] for one in rows}) == 1
    row["tokens_s"] = round(count * row["tokens"] / row["step_s"])
    for name in ("peak_gib", "reserved_gib", "outside_torch_gib", "ram_gib"):
        if name in row:
            row[name] = [one[name] for one in rows]
    return row


def main() -> None:
    tiny = "--tiny" in sys.argv
    parts = [one for one in sys.argv[1:] if one != "--tiny"] or list(PARTS)
    if unknown := set(parts) - {*PARTS, *MORE}:
        known = ", ".join(PARTS + MORE)
        sys.exit(f"There is no part {', '.join(unknown)}; there are {known}")
    gpus = torch.cuda.device_count()
    if not tiny and gpus < 2:
        sys.exit("This needs two GPUs; --tiny tests it without.")
    root = Path(tempfile.mkdtemp())
    for name, sizes in SHAPES.items():
        chosen = [part for part in parts if part.split()[0] == name]
        if not chosen:
            continue
        began, folder = time.time(), root / name
        config = LlamaConfig(**sizes | (TINY if tiny else {}))
        # in a process of its own, so that this one takes no memory of a GPU
        torch.multiprocessing.spawn(emulate.random_4bit, (config, folder), nprocs=1)
        print(f"{name}: written in {time.time() - began:.0f} s", flush=True)
        for part in chosen:
            began = time.time()
            try:
                row = measure(part, folder, gpus or 2)
            except torch.multiprocessing.ProcessRaisedException as error:
                row = {"part": part, "failed": str(error)[-1500:]}  # the next may run
            print(
                "SHARDED", json.dumps(row), f"{time.time() - began:.0f} s", flush=True
            )
            if not tiny:
                emulate.append("sharded.json", row)
        shutil.rmtree(folder)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
