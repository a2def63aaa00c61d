"""Train an adapter on all GPUs of one or several machines, as notebook 02 does on one.

    torchrun [options] train.py DATASET MODEL OUT [--shard]

DATASET is a folder that notebook 01 wrote. OUT is the folder of the new adapter, which
all machines must see, as they must see DATASET. With --shard each GPU keeps only its
part of the 4-bit weights. docs/scale.md says when that pays, and shows the options.
"""

import os
import sys

# Each process sees one GPU, its own, as number 0. CUDA reads this once, at its start.
LOCAL = int(os.environ["LOCAL_RANK"])
GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = GPUS.split(",")[LOCAL] if GPUS else str(LOCAL)
os.environ["LOCAL_RANK"] = "0"

from colab_utils import runtime

runtime.quiet()

from functools import partial
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed

from colab_utils import data, hub, memory, models, recipe, training
from colab_utils.training.progress import LivePlot
from colab_utils.training.sft import FastSFTTrainer

RANK, RATE, EPOCHS, ROWS, SEED = 16, 2e-4, 3, 16, 0  # ROWS in an update


def main(dataset: Path, name: str, out: Path, shard: bool) -> None:
    """Train, and save the adapter; each process runs this."""
    gpu = runtime.detect().device == "cuda"
    state = PartialState(cpu=not gpu)  # connects the processes
    count = state.num_processes
    tokenizer, config = models.load_tokenizer(name), models.load_config(name)
    rows = data.tokenize(data.read(dataset, "train"), tokenizer)
    lengths = [len(row["input_ids"]) for row in rows]
    optimizer = "adamw_8bit" if gpu else "adamw_torch"
    run = {"data": recipe.sha256(dataset / "train.jsonl"), "optimizer": optimizer}
    run |= {"weights": models.fingerprint(name), "rank": RANK, "rate": RATE}

    decided = [None, None]
    if state.is_main_process:  # one process decides for all
        plan = memory.plan(
            config,
            "qlora",
            RANK,
            longest=max(lengths),
            update=ROWS * sum(lengths) // len(lengths) // count,
            budget=memory.budget(config, count),
            gpu=gpu,
            optimizer=optimizer,
            shards=count if shard else 1,
        )
        print(f"each of {count} processes: {plan}")
        size = {"tokens": plan.tokens, "accumulation": plan.accumulation * count}
        point = training.resume_point(out / "checkpoints", {**run, **size})
        decided = [plan, point]
    plan, point = broadcast_object_list(decided)

    training.prepare_fast_path(config)
    load = models.load_sharded if shard else models.load_model
    model = load(name, models.quantization_config())
    set_seed(SEED)
    lora = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    usual = {"learning_rate": RATE, "num_train_epochs": EPOCHS, "seed": SEED}
    usual |= {"ddp_find_unused_parameters": False}
    trainer = FastSFTTrainer(
        model=model,
        args=training.settings(out / "checkpoints", plan, **usual),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    training.prepare(trainer, plan)
    if not state.is_main_process:
        trainer.remove_callback(LivePlot)
    result = trainer.train(resume_from_checkpoint=point)
    print(f"process {state.process_index}: {memory.peak():.2f} GiB at the peak")
    if state.is_main_process:
        print(f"loss {result.training_loss:.3f}; {result.global_step} updates")
        trained = hub.Trained("adapter", name, "qlora", {})
        describe = partial(hub.write_trained, trained=trained, dataset=dataset, **run)
        training.save(trainer, tokenizer, out, describe)
        training.remove_checkpoints(out / "checkpoints")
    state.wait_for_everyone()


if __name__ == "__main__":
    folder, model_name, adapter = sys.argv[1:4]
    main(Path(folder), model_name, Path(adapter), "--shard" in sys.argv)
