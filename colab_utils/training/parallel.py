"""Train on several GPUs: one process for each, and the notebook watches them.

The processes are torch's own (`torch.multiprocessing`), and so is the mean of their
gradients (DistributedDataParallel, through accelerate and transformers' trainer). They
are new processes, not forks: a notebook has used its GPU long before it trains, and
CUDA does not survive a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import memory, recipe, runtime
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    import torch
    from torch.multiprocessing.spawn import ProcessContext
    from transformers import Trainer
    from transformers.trainer_utils import TrainOutput

    from colab_utils.training.progress import LivePlot

BUILD, WEIGHTS, STATE = "build.pickle", "trained.safetensors", "state.json"
POLL = 0.5  # seconds between two looks at the processes


@dataclass(frozen=True)
class Job:
    """What the processes have in common; `folder` holds their files and logs."""

    folder: Path
    processes: int
    gpus: tuple[str, ...]  # ids as in CUDA_VISIBLE_DEVICES; empty on a CPU
    port: int
    checkpoint: str | None

    def log(self, rank: int) -> Path:
        """Return the file with the output of a process."""
        return self.folder / f"process-{rank}.log"

    def error(self, rank: int) -> Path:
        """Return the file with the error of a process."""
        return self.folder / f"error-{rank}.json"

    def report(self, rank: int) -> Path:
        """Return the file with what a process has measured."""
        return self.folder / f"report-{rank}.json"


def count(wanted: int | str) -> int:
    """Return the number of processes: that of the GPUs for "auto", at least 1.

    Raises ValueError if fewer GPUs are there than are wanted.
    """
    gpus = len(runtime.gpus())
    if wanted != "auto" and gpus and int(wanted) > gpus:
        raise ValueError(f"GPUS = {wanted}, but this machine has {gpus}: set {gpus}.")
    found = max(1, gpus) if wanted == "auto" else int(wanted)
    if found > 1:
        print(
            f"training runs in {found} processes, "
            + ("one on each GPU" if gpus else "which share the CPU")
        )
    return found


def train(
    trainer: Trainer,
    build: Callable[[], Trainer],
    processes: int,
    checkpoint: str | None = None,
) -> TrainOutput:
    """Train in `processes` processes, each with a GPU, as `trainer.train` does in one.

    Each process calls `build`, which returns a trainer like `trainer`, but with a model
    of its own; `build` may be a function of a notebook. All begin with the weights of
    the first one. Each trains on its share of an update's batches, and all take the
    mean gradient. At the end the trained weights and the log are put into `trainer`.
    Its model waits in RAM meanwhile. The metrics also have "peak_gib", the largest peak
    memory of a process. Without a GPU the processes share the CPU.

    Raises RuntimeError, with the number of the process and its error, if one fails: the
    others are then stopped. An interrupt stops them all.
    """
    import cloudpickle

    gpus = tuple(runtime.gpus()[:processes])
    with tempfile.TemporaryDirectory() as folder, _parked(model_of(trainer)):
        job = Job(Path(folder), processes, gpus, _free_port(), checkpoint)
        (job.folder / BUILD).write_bytes(cloudpickle.dumps(build))
        _watch(job)
        return _take(trainer, job)


def _watch(job: Job) -> None:
    """Start the processes, and draw the progress of the first until all have ended."""
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        start_processes,
    )

    from colab_utils.training.progress import LivePlot

    plot, seen = LivePlot(), 0.0
    context = start_processes(
        _work, (job,), job.processes, join=False, daemon=True, start_method="spawn"
    )
    try:
        while not context.join(POLL, grace_period=5):
            seen = _draw(plot, job.folder / STATE, seen)
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise _failure(job, context) from error
    finally:  # also after an interrupt
        _stop(context)
    _draw(plot, job.folder / STATE, seen)


def _draw(plot: LivePlot, file: Path, seen: float) -> float:
    """Draw the state in a file if it is newer than `seen`; return its time."""
    from transformers import TrainerState

    changed = file.stat().st_mtime if file.exists() else 0.0
    if changed > seen:
        state = TrainerState.load_from_json(str(file))
        if not seen:
            plot.begin(state)
        plot.show(state, last=state.global_step == state.max_steps)
    return max(changed, seen)


def _stop(context: ProcessContext) -> None:
    """End the processes that still run; kill those that do not end in 5 seconds."""
    running = [process for process in context.processes if process.is_alive()]
    for process in running:
        process.terminate()
    for process in running:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _failure(job: Job, context: ProcessContext) -> RuntimeError:
    """Return the error of the process that failed first.

    A process that was killed leaves no error of its own, but the others then lose their
    connection to it: so it counts as the first.
    """
    codes = {rank: one.exitcode for rank, one in enumerate(context.processes)}
    errors = [
        json.loads(job.error(rank).read_text("utf-8"))
        for rank in codes
        if job.error(rank).is_file()
    ]
    told = {one["rank"] for one in errors}
    ours = -15  # the signal of `_stop` and of torch
    killed = [r for r, code in codes.items() if code not in (0, ours) and r not in told]
    if killed:
        rank, code = killed[0], codes[killed[0]]
        why = (
            f"ended with exit code {code}"
            if code is None or code >= 0
            else f"was killed by signal {-code}; signal 9 often means that the machine "
            "ran out of RAM"
        )
        tail = job.log(rank).read_text("utf-8", "replace").splitlines()[-5:]
        more = "\n".join(tail)
    else:
        first = min(errors, key=lambda one: one["time"])
        rank, why, more = first["rank"], f"stopped: {first['what']}", first["trace"]
    return RuntimeError(
        f"Process {rank} of {job.processes} (counted from 0) {why}. The others were "
        f"stopped. Run the notebook again: it resumes at the last checkpoint.\n{more}"
    )


def _take(trainer: Trainer, job: Job) -> TrainOutput:
    """Put the trained weights and the log into `trainer`; return the metrics."""
    import torch
    from safetensors.torch import load_file
    from transformers import TrainerState
    from transformers.trainer_utils import TrainOutput

    reports = [json.loads(job.report(r).read_text()) for r in range(job.processes)]
    if len({one["weights"] for one in reports}) > 1:
        raise RuntimeError(
            "The processes ended with different weights, so their gradients were not "
            "averaged. Please report this, and set GPUS = 1."
        )
    trained = load_file(job.folder / WEIGHTS)
    ours = _trained(model_of(trainer))
    if trained.keys() != ours.keys():
        raise ValueError(
            f"The processes trained {len(trained)} parameters, and the notebook's "
            f"trainer has {len(ours)}: build both in the same way."
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(trained[name])
    trainer.state = TrainerState.load_from_json(str(job.folder / STATE))
    first = reports[0]
    peak = max(one["peak_gib"] for one in reports)
    return TrainOutput(
        first["steps"], first["loss"], {**first["metrics"], "peak_gib": peak}
    )


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def _parked(model: torch.nn.Module) -> Iterator[None]:
    """Keep a model in RAM for as long as a process trains on its GPU."""
    from colab_utils.fast import lora, patch

    device = next(model.parameters()).device
    if device.type == "cpu":
        yield
        return
    inner = lora.find_llama(model)
    fast = patch.FastPath.of(inner) if inner is not None else None
    patch.remove(model)  # its memory is on the GPU
    try:
        model.to("cpu")
        memory.release()
        yield
    finally:
        model.to(device)
        if fast:
            patch.apply(model, fast.recompute, fast.offload)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _work(rank: int, job: Job) -> None:
    """Train in one process; torch calls this in each."""
    log = job.log(rank).open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    # Each process sees one GPU, its own, as number 0: so it runs the same code as a
    # notebook does on a machine with one.
    world = {"WORLD_SIZE": job.processes, "RANK": rank, "LOCAL_RANK": 0}
    world["LOCAL_WORLD_SIZE"] = job.processes
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job.port}
    os.environ.update({name: str(one) for name, one in (world | address).items()})
    if job.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpus[rank]
    else:  # accelerate would name it cpu:0, which torch.load does not know
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    try:
        _train(rank, job)
    except Exception as error:
        found = {"rank": rank, "time": time.time(), "trace": traceback.format_exc()}
        what = f"{type(error).__name__}: {error}"
        recipe.write_json(job.error(rank), {**found, "what": what})
        raise


def _train(rank: int, job: Job) -> None:
    """Build the trainer, train, and write what the notebook needs."""
    import pickle

    runtime.quiet()
    trainer: Trainer = pickle.loads((job.folder / BUILD).read_bytes())()
    _prepare(trainer, job.folder / STATE if rank == 0 else None)
    memory.release()
    result = trainer.train(resume_from_checkpoint=job.checkpoint)
    trained = {n: p.detach().cpu() for n, p in _trained(model_of(trainer)).items()}
    if rank == 0:
        from safetensors.torch import save_file

        save_file(
            {name: one.contiguous() for name, one in trained.items()},
            job.folder / WEIGHTS,
        )
        trainer.state.save_to_json(str(job.folder / STATE))
    report = {
        "steps": result.global_step,
        "loss": result.training_loss,
        "metrics": result.metrics,
        "peak_gib": memory.peak(),
        "weights": _digest(trained),
    }
    recipe.write_json(job.report(rank), report)


def _prepare(trainer: Trainer, state: Path | None) -> None:
    """Let a process's trainer report its progress instead of drawing it."""
    from colab_utils.training.progress import LivePlot, WriteState

    trainer.remove_callback(LivePlot)
    if state:
        trainer.add_callback(WriteState(state))
    options = trainer.accelerator.ddp_handler
    options.find_unused_parameters = False  # LoRA uses all of them
    options.gradient_as_bucket_view = True  # or each gradient would exist twice


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
