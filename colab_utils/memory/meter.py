"""Measure the memory that is free for training, and the peak of this process."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.memory import costs
from colab_utils.runtime import GIB
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def budget(config: PreTrainedConfig | Shape, processes: int = 1) -> float:
    """Return the bytes that training can use on this machine.

    On a GPU this is its memory less 0.3 GiB, which CUDA takes. With several
    `processes`, one for each GPU, the first GPU is the notebook's too, and the exchange
    of gradients needs buffers. On a CPU it is the available RAM of each process less
    what loading the model takes.
    """
    gpu = runtime.detect().memory_gib
    if gpu is not None:
        return (gpu - 0.3) * GIB - (costs.SHARED if processes > 1 else 0)
    return free_ram() / processes - costs.ram_to_load(config)


def free_gpu() -> int:
    """Return the bytes that new tensors can take on the GPU.

    They are free, or torch holds them without using them.
    """
    import torch

    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def free_ram() -> int:
    """Return the bytes of RAM that this process can take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def release() -> None:
    """Free the memory of deleted objects, and reset the GPU's `peak`."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """Return the peak memory in GiB.

    On a GPU this is the peak of torch's tensors since `release`; else it is `ram()`.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return ram()


def ram() -> float:
    """Return the peak RAM in GiB of this process since it began."""
    if sys.platform == "linux":  # where `resource` may return the parent's peak
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) * 1024 / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
