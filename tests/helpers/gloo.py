"""Run a function in several processes that exchange tensors on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def in_processes(
    folder: Path, function: Callable[..., Any], *args: Any, count: int = 2
) -> list[Any]:
    """Call `function(*args)` in a gloo group of `count` processes; return its results.

    The function must be at module level. `folder` is empty, and holds the results.
    """
    torch.multiprocessing.spawn(_run, (count, folder, function, args), nprocs=count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _run(
    rank: int, count: int, folder: Path, function: Callable[..., Any], args: tuple
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    torch.save(function(*args), folder / f"{rank}.pt")
    dist.destroy_process_group()
