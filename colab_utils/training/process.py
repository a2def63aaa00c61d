"""One of the processes that train together; `parallel` starts them."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import memory, recipe, runtime
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

BUILD, WEIGHTS, STATE = "build.pickle", "trained.safetensors", "state.json"
ADAPTER = "adapter"  # a folder


@dataclass(frozen=True)
class Job:
    """What the processes have in common; `folder` holds their files and logs."""

    folder: Path
    processes: int
    gpus: tuple[str, ...]  # ids as in CUDA_VISIBLE_DEVICES; empty on a CPU
    port: int
    checkpoint: str | None
    sharded: bool = False  # the result is an adapter folder, not only its weights

    def log(self, rank: int) -> Path:
        """Return the file with the output of a process."""
        return self.folder / f"process-{rank}.log"

    def error(self, rank: int) -> Path:
        """Return the file with the error of a process."""
        return self.folder / f"error-{rank}.json"

    def report(self, rank: int) -> Path:
        """Return the file with what a process has measured."""
        return self.folder / f"report-{rank}.json"


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def work(_: int, rank: int, job: Job) -> None:
    """Train in one process; torch calls this in each."""
    log = job.log(rank).open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    try:
        _train(rank, job)
    except Exception as error:
        found = {"rank": rank, "time": time.time(), "trace": traceback.format_exc()}
        what = f"{type(error).__name__}: {error}"
        recipe.write_json(job.error(rank), {**found, "what": what})
        raise


def _train(rank: int, job: Job) -> None:
    """Build the trainer, train, and write what the notebook needs."""
    from colab_utils.training.progress import write_state

    runtime.quiet()
    if job.sharded:
        _join(job)
    trainer: Trainer = pickle.loads((job.folder / BUILD).read_bytes())()
    _prepare(trainer, job.folder / STATE if rank == 0 else None)
    memory.release()
    result = trainer.train(resume_from_checkpoint=job.checkpoint)
    trained = {
        n: p.detach().cpu() for n, p in trained_parameters(model_of(trainer)).items()
    }
    if rank == 0:
        write_state(trainer.state, job.folder / STATE)
        if job.sharded:
            trainer.save_model(str(job.folder / ADAPTER))
        else:
            _save(trained, job.folder / WEIGHTS)
    report = {
        "steps": result.global_step,
        "loss": result.training_loss,
        "metrics": result.metrics,
        "peak_gib": memory.peak(),
        "weights": _digest(trained),
    }
    recipe.write_json(job.report(rank), report)


def _join(job: Job) -> None:
    """Join the group of processes, which a sharded model needs before its trainer.

    The trainer takes the group that exists; otherwise it would create one.
    """
    import torch
    import torch.distributed as dist

    if job.gpus:
        device = torch.device("cuda", 0)  # the only one that this process sees
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")


def _prepare(trainer: Trainer, state: Path | None) -> None:
    """Let a process's trainer report its progress instead of drawing it."""
    from colab_utils.training.progress import LivePlot, WriteState

    trainer.remove_callback(LivePlot)
    if state:
        trainer.add_callback(WriteState(state))
    options = trainer.accelerator.ddp_handler
    options.find_unused_parameters = False  # LoRA uses all of them
    options.gradient_as_bucket_view = True  # or each gradient would exist twice


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: one.contiguous() for name, one in tensors.items()}, file)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
