"""Train on several GPUs: one process for each, and the notebook watches them.

The processes are torch's own (`torch.multiprocessing`), and so is the mean of their
gradients (DistributedDataParallel, through accelerate and transformers' trainer). They
are new processes, not forks: a notebook has used its GPU long before it trains, and
CUDA does not survive a fork. `train` puts the result into the model of the notebook,
and `train_sharded` into files, for a model that the notebook cannot hold.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import memory, runtime
from colab_utils.training.process import (
    ADAPTER,
    BUILD,
    STATE,
    WEIGHTS,
    Job,
    trained_parameters,
)
from colab_utils.training.trainer import model_of
from colab_utils.training.watching import watch

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainerState
    from transformers.trainer_utils import TrainOutput


@dataclass(frozen=True)
class Result:
    """The result of `train_sharded`, which `training.save` writes to a folder.

    `peaks_gib` has the peak memory of each process. The adapter is in `files`, which
    are deleted with this object.
    """

    files: tempfile.TemporaryDirectory[str]
    state: TrainerState
    metrics: dict[str, float]
    peaks_gib: list[float]

    def save_model(self, folder: str) -> None:
        """Copy the adapter into a folder."""
        shutil.copytree(Path(self.files.name) / ADAPTER, folder, dirs_exist_ok=True)


def count(wanted: int | str, sharded: bool = False) -> int:
    """Return the number of processes: that of the GPUs for "auto", at least 1.

    A `sharded` model needs two: without a GPU these share the CPU. Raises ValueError if
    fewer GPUs are there than are wanted or needed.
    """
    gpus, least = len(runtime.gpus()), 2 if sharded else 1
    if sharded and (gpus == 1 or wanted == 1):
        here = f"GPUS = {wanted}" if gpus != 1 else "this machine has 1 GPU"
        raise ValueError(
            f"Sharded weights need at least 2 processes, but {here}: choose a machine "
            "with several GPUs, such as Kaggle's GPU T4 x2, or train on one GPU with "
            '02_finetune_qlora. MODEL = "demo" also runs on a machine without a GPU.'
        )
    if wanted != "auto" and gpus and int(wanted) > gpus:
        raise ValueError(f"GPUS = {wanted}, but this machine has {gpus}: set {gpus}.")
    found = max(least, gpus) if wanted == "auto" else int(wanted)
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
    with tempfile.TemporaryDirectory() as folder, _parked(model_of(trainer)):
        return _take(trainer, _run(build, processes, checkpoint, folder))


def train_sharded(
    build: Callable[[], Trainer], processes: int, checkpoint: str | None = None
) -> Result:
    """Train a model whose weights are sharded over `processes` processes.

    As `train`, but the notebook has no trainer and no model. Each process calls
    `build`, which returns a trainer with a model of `models.load_sharded`. The adapter
    and the log are in the result.

    Raises the errors of `train`.
    """
    from transformers import TrainerState

    files = tempfile.TemporaryDirectory()
    job = _run(build, processes, checkpoint, files.name, sharded=True)
    reports = _reports(job)
    state = TrainerState.load_from_json(str(job.folder / STATE))
    peaks = [one["peak_gib"] for one in reports]
    return Result(files, state, reports[0]["metrics"], peaks)


def _run(
    build: Callable[[], Trainer],
    processes: int,
    checkpoint: str | None,
    folder: str,
    sharded: bool = False,
) -> Job:
    """Train in processes, which write their results to a folder."""
    import cloudpickle

    gpus = tuple(runtime.gpus()[:processes])
    job = Job(Path(folder), processes, gpus, _free_port(), checkpoint, sharded)
    (job.folder / BUILD).write_bytes(cloudpickle.dumps(build))
    watch(job)
    return job


def _reports(job: Job) -> list[dict[str, Any]]:
    """Return what each process has measured; their weights must be equal."""
    reports = [json.loads(job.report(r).read_text()) for r in range(job.processes)]
    if len({one["weights"] for one in reports}) > 1:
        raise RuntimeError(
            "The processes ended with different weights, so their gradients were not "
            "averaged. Please report this, and train on one GPU."
        )
    return reports


def _take(trainer: Trainer, job: Job) -> TrainOutput:
    """Put the trained weights and the log into `trainer`; return the metrics."""
    import torch
    from safetensors.torch import load_file
    from transformers import TrainerState
    from transformers.trainer_utils import TrainOutput

    reports = _reports(job)
    trained = load_file(job.folder / WEIGHTS)
    ours = trained_parameters(model_of(trainer))
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
            patch.apply(model, *fast.settings)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
