"""Measure QLoRA of the shape of Llama 2 7B on several GPUs, each limited like a T4.

    python bench/parallel.py [demo] [ram] [UPDATE ...]

Trains the same updates in one process, in two, and in four if there are so many GPUs,
as notebook 02 does (`training.parallel`), with the cards' direct connection and without
it: NCCL then goes through RAM, as on a machine whose cards only have PCIe. With two
GPUs, it also kills a process, and interrupts a run. UPDATE is "4x8192" (four
micro-batches of 8,192 tokens in all processes), "4x2048" or "2x1200"; without any, all
are measured. `ram` measures only the exchange through RAM. Adds a row to
bench/results/parallel.json. `demo` is a dry run on a CPU, which writes nothing.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from colab_utils import runtime

runtime.quiet()

import emulate
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, TrainerCallback, set_seed
from trl import SFTConfig

from colab_utils import memory, models, training
from colab_utils.training import parallel, progress
from colab_utils.training.callbacks import SaveEvery
from colab_utils.training.sft import FastSFTTrainer

DEMO = "demo" in sys.argv[1:]
RANK, STEPS, WARM = 16, 12, 4  # the first WARM steps are not timed
FOLDER = Path(tempfile.gettempdir()) / "bench-parallel"
# By name: tokens of a micro-batch, and micro-batches of an update in all processes.
UPDATES = {"4x8192": (8192, 4), "4x2048": (2048, 4), "2x1200": (1200, 2)}


class Measure(TrainerCallback):
    """Note when each step ends, and the memory of this process and of the others."""

    def __init__(self, name: str, fail: str = "") -> None:
        self.name, self.fail, self.times = name, fail, []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        rank = int(os.environ["RANK"])
        if self.fail and state.global_step == 3 and rank == 1:
            (FOLDER / f"{self.name}-failed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, args, state, control, **kwargs):
        row = {
            "steps_s": [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        }
        row["losses"] = [e["loss"] for e in state.log_history if "loss" in e]
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            row["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
            row["beside_torch_gib"] = (
                total - free - torch.cuda.memory_reserved()
            ) / 2**30
        rank = os.environ.get("RANK", "0")
        (FOLDER / f"{self.name}-{rank}.json").write_text(json.dumps(row))


def rows(tokens: int, count: int, vocabulary: int) -> list[dict]:
    """Return packed rows of four random documents each."""
    draw, size = torch.Generator().manual_seed(0), tokens // 4
    ids = torch.randint(3, vocabulary, (4 * count, size), generator=draw).tolist()
    return [
        {"input_ids": one, "assistant_masks": [0] * 8 + [1] * (size - 8)} for one in ids
    ]


def build(checkpoint: str, tokens: int, times: int, name: str, fail: str = ""):
    """Return a trainer whose update has `times` micro-batches in this process."""
    emulate.t4()
    config, gpu = models.load_config(checkpoint), torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    plan = memory.plan(
        config,
        "qlora",
        RANK,
        longest=tokens,
        update=tokens,
        budget=emulate.CAP * 2**30,
        gpu=gpu,
        optimizer="adamw_8bit" if gpu else "adamw_torch",
    )
    set_seed(0)
    trainer = FastSFTTrainer(
        model=models.load_model(checkpoint, models.quantization_config()),
        args=SFTConfig(
            output_dir=str(FOLDER / "out"),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=times,
            max_steps=STEPS,
            learning_rate=1e-4,
            max_length=tokens,
            packing=True,
            gradient_checkpointing=False,
            optim="adamw_8bit" if gpu else "adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not gpu,
            disable_tqdm=True,
            dataloader_pin_memory=gpu,
            **training.precision(),
        ),
        train_dataset=Dataset.from_list(
            rows(tokens, STEPS * times * world, config.vocab_size)
        ),
        processing_class=models.load_tokenizer("demo"),
        peft_config=LoraConfig(
            r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    training.float32_adapters(trainer)
    trainer.add_callback(SaveEvery(10))  # show_progress also needs IPython
    training.use_fast_path(trainer, plan)
    if name:
        trainer.add_callback(Measure(name, fail))
    if name and os.environ.get("RANK", "0") == "0":
        print(name, plan, flush=True)
    return trainer


def run(
    trainer, checkpoint: str, processes: int, update: str, name: str, fail: str = ""
):
    """Train an update in some processes, and return what they have measured."""
    tokens, times = UPDATES[update]
    make = functools.partial(build, checkpoint, tokens, times // processes, name, fail)
    began = time.time()
    result = parallel.train(trainer, make, processes)
    found = [
        json.loads((FOLDER / f"{name}-{rank}.json").read_text())
        for rank in range(processes)
    ]
    step = statistics.median(found[0]["steps_s"][WARM - 1 :])
    row = {
        "name": name,
        "update": update,
        "processes": processes,
        "step_ms": 1000 * step,
        "tokens_s": tokens * times / step,
        "spread_ms": [
            1000 * min(found[0]["steps_s"][WARM - 1 :]),
            1000 * max(found[0]["steps_s"][WARM - 1 :]),
        ],
        "losses": found[0]["losses"],
        "seconds_in_all": time.time() - began,
        "peak_gib": result.metrics["peak_gib"],
    }
    row |= {k: [f.get(k) for f in found] for k in ("reserved_gib", "beside_torch_gib")}
    print(json.dumps(row), flush=True)
    return row


def write_checkpoint() -> str:
    """Save the shape of Llama 2 7B in 4 bits with random weights; return its folder."""
    if DEMO:
        return "demo"
    whole, small = FOLDER / "whole", FOLDER / "nf4"
    emulate.random_model(
        LlamaConfig(intermediate_size=11008, max_position_embeddings=4096), whole
    )
    torch.cuda.empty_cache()
    models.load_model(str(whole), models.quantization_config()).save_pretrained(small)
    shutil.rmtree(whole)
    torch.cuda.empty_cache()
    return str(small)


def fails(trainer, checkpoint: str) -> dict[str, float]:
    """Return the seconds until the others stop after a kill, and after an interrupt."""
    found = {}
    try:
        run(trainer, checkpoint, 2, "2x1200", "kill", "kill")
    except RuntimeError as error:
        ended, killed = time.time(), float((FOLDER / "kill-failed").read_text())
        print(error, flush=True)
        found["after_kill_s"] = ended - killed
    state = {}

    def interrupt() -> None:
        state["at"] = time.time()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(25 if not DEMO else 12, interrupt)
    timer.start()
    try:
        run(trainer, checkpoint, 2, "2x1200", "interrupt")
    except KeyboardInterrupt:
        found["after_interrupt_s"] = time.time() - state["at"]
    timer.cancel()
    return found


def main() -> None:
    """Measure everything, and append a row."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    progress.LivePlot.show = lambda *args, **kwargs: None  # there is no IPython
    if DEMO:
        os.environ["COURSE_GPUS"] = ""
        UPDATES.update({"4x8192": (512, 4), "4x2048": (256, 4), "2x1200": (128, 2)})
    began = time.time()
    checkpoint = write_checkpoint()
    print(f"checkpoint {time.time() - began:.0f} s", flush=True)
    trainer = build(checkpoint, 256, 1, "")
    found = []
    most = 2 if DEMO else len(runtime.gpus())
    for update in [name for name in sys.argv[1:] if name in UPDATES] or UPDATES:
        counts = [n for n in (1, 2, 4, 8) if n <= min(most, UPDATES[update][1])]
        for processes in () if "ram" in sys.argv[1:] else counts:
            found.append(
                run(trainer, checkpoint, processes, update, f"{update}-{processes}")
            )
        os.environ["NCCL_P2P_DISABLE"] = "1"
        name = f"{update}-{counts[-1]}-through-ram"
        found.append(run(trainer, checkpoint, counts[-1], update, name))
        del os.environ["NCCL_P2P_DISABLE"]
    row = {"runs": found} | (fails(trainer, checkpoint) if most == 2 else {})
    print(json.dumps({k: v for k, v in row.items() if k != "runs"}))
    if not DEMO:
        listed = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True
        )
        print(listed.stdout[:1500])
        emulate.append("parallel.json", emulate.card() | row)


if __name__ == "__main__":
    main()
