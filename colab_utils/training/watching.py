"""Start the processes of a training, show their progress, and stop them on an error."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.training.process import STATE, Job, work

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

    from colab_utils.training.progress import LivePlot

POLL = 0.5  # seconds between two looks at the processes


def watch(job: Job) -> None:
    """Start the processes, and draw the progress of the first until all have ended."""
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
    )

    from colab_utils.training.progress import LivePlot

    plot, seen = LivePlot(), 0.0
    contexts: list[ProcessContext] = []
    try:
        for rank in range(job.processes):
            contexts.append(_start(rank, job))
        while not all([context.join(0) for context in contexts]):
            seen = _draw(plot, job.folder / STATE, seen)
            time.sleep(POLL)
    except (ProcessRaisedException, ProcessExitedException) as error:
        _stop(contexts, patience=5)  # a connection that broke is an error, too
        raise _failure(job, contexts) from error
    finally:  # also after an interrupt
        _stop(contexts)
    _draw(plot, job.folder / STATE, seen)


def _start(rank: int, job: Job) -> ProcessContext:
    """Start a process, whose environment says which one it is.

    It sees one GPU, its own, as number 0: so it runs the same code as a notebook does
    on a machine with one. CUDA reads this variable once, and a library may ask CUDA
    while it is imported, so the process must have it from the start.
    """
    from torch.multiprocessing.spawn import start_processes

    world = {"WORLD_SIZE": job.processes, "LOCAL_WORLD_SIZE": job.processes}
    world |= {"RANK": rank, "LOCAL_RANK": 0, "MASTER_PORT": job.port}
    given = {name: str(number) for name, number in world.items()}
    given["MASTER_ADDR"] = "127.0.0.1"
    if job.gpus:
        given["CUDA_VISIBLE_DEVICES"] = job.gpus[rank]
    else:  # accelerate would name it cpu:0, which torch.load does not know
        given["ACCELERATE_TORCH_DEVICE"] = "cpu"
    before = dict(os.environ)
    os.environ.update(given)
    try:
        return start_processes(
            work, (rank, job), 1, join=False, daemon=True, start_method="spawn"
        )
    finally:
        os.environ.clear()
        os.environ.update(before)


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


def _stop(contexts: list[ProcessContext], patience: float = 0) -> None:
    """End the processes that still run after `patience` seconds.

    Those that do not end in 5 seconds more are killed.
    """
    processes = [context.processes[0] for context in contexts]
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.terminate()
    for process in running:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _failure(job: Job, contexts: list[ProcessContext]) -> RuntimeError:
    """Return the error of the process that failed first.

    A process that was killed leaves no error of its own, but the others then lose their
    connection to it: so it counts as the first.
    """
    codes = {rank: one.processes[0].exitcode for rank, one in enumerate(contexts)}
    errors = [
        json.loads(job.error(rank).read_text("utf-8"))
        for rank in codes
        if job.error(rank).is_file()
    ]
    told = {one["rank"] for one in errors}
    ours = -15  # the signal of `_stop`
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
        rank, more = first["rank"], first["trace"]
        why = f"stopped: {first['what'].rstrip('.')}"  # a sentence goes on after it
    return RuntimeError(
        f"Process {rank} of {job.processes} (counted from 0) {why}. The others were "
        f"stopped. Run the notebook again: it resumes at the last checkpoint.\n{more}"
    )
