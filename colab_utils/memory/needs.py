"""Check that a machine has what a run needs, before a download or before loading."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from colab_utils import hub, runtime
from colab_utils.memory import costs
from colab_utils.memory.costs import Memory
from colab_utils.memory.meter import free_gpu
from colab_utils.runtime import GIB
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Need(NamedTuple):
    """Memory or disk space that a run needs, in bytes."""

    name: str
    needed: float
    free: float
    total: float
    advice: str  # what to change if even `total` is too small

    def __str__(self) -> str:
        """Return in one line what is needed and what is free."""
        return (
            f"{self.name}: needs {self.needed / GIB:.1f} GiB of "
            f"{self.free / GIB:.1f} free"
        )

    def problem(self) -> str | None:
        """Return what is missing and what to change, or None if enough is free."""
        if self.needed <= self.free:
            return None
        advice = self.advice
        if self.needed <= self.total:
            advice = "something else holds memory: restart the session"
        return (
            f"{self.name} has {self.free / GIB:.1f} GiB free and "
            f"{self.needed / GIB:.1f} are needed: {advice}"
        )


def preflight(
    config: PreTrainedConfig,
    model: str,
    cost: Memory,
    processes: int = 1,
    sharded: bool = False,
) -> None:
    """Check GPU, RAM, disk and access before a download; print the numbers.

    `model` is a folder or a Hub id, `cost` a result of `estimate` or of `plan`, which
    each of the `processes` needs (`training.parallel`). The notebook has a model of its
    own as well, unless the weights are `sharded` over the processes. Raises
    MemoryError if memory or disk space is too small; the message lists what is needed,
    what is free and what to change. Raises PermissionError for a model that can't be
    downloaded, and FileNotFoundError for a name that does not exist.
    """
    shape = Shape.from_config(config)
    needs, denied = _memory_needs(shape, cost, processes, sharded), None
    if cost.disk:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        advice = f"free space in {folder}, or name another folder in TMPDIR"
        needs.append(Need("disk for inputs", processes * cost.disk, free, free, advice))
    if not Path(model).is_dir():
        with hub.hub_errors(model, None):
            downloaded = _downloaded(model)
        if not downloaded:
            needs.append(_disk_need(shape))
            if not hub.can_read(model, hub.token()):
                denied = f"{model} can't be downloaded (the reason is printed above)"
    for need in needs:
        print(need)
    problems = [problem for need in needs if (problem := need.problem())]
    if problems:
        found = "; ".join([*problems, denied] if denied else problems)
        raise MemoryError(f"This would not fit. {found}.")
    if denied:
        raise PermissionError(f"{denied}.")


def check_weights(
    config: PreTrainedConfig, model: str, quantized: bool, size: int
) -> None:
    """Raise MemoryError if a model's weights are larger than the device's free memory.

    `quantized` are weights in 4 bits; `size` is the bytes of a number in the others.
    The message has the numbers, and what to change.
    """
    import psutil
    import torch

    shape, machine = Shape.from_config(config.get_text_config()), runtime.detect()
    method = "qlora" if quantized or shape.quantized else "lora"
    needed = costs.weights(shape, method, size).total
    if machine.device == "cuda":
        free, total = free_gpu(), torch.cuda.mem_get_info()[1]
        advice = (
            "choose a smaller MODEL or a larger GPU, or merge an adapter with "
            "04_merge_and_publish, which needs no GPU, and run the GGUF file"
        )
        need = Need(machine.accelerator, needed, free, total, advice)
    else:
        ram = psutil.virtual_memory()
        advice = "choose a smaller MODEL, or a machine with a GPU"
        need = Need("RAM", needed, ram.available, ram.total, advice)
    if problem := need.problem():
        raise MemoryError(f"The weights of {model} do not fit. {problem}.")


def _memory_needs(
    shape: Shape, cost: Memory, processes: int, sharded: bool
) -> list[Need]:
    """Return the memory that the GPU, if there is one, and RAM must have free."""
    import psutil
    import torch

    machine, ram = runtime.detect(), psutil.virtual_memory()
    needed, loading = [], processes * (costs.ram_to_load(shape) + cost.ram)
    if sharded:
        loading += costs.PYTHON_RAM  # the notebook itself
    elif processes > 1:  # the notebook itself, with its model
        loading += costs.ram_to_load(shape) + cost.weights + cost.scales
    if machine.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        advice = "choose a smaller MODEL, RANK or MAX_TOKENS"
        needed.append(Need(machine.accelerator, cost.total, free, total, advice))
        advice = (
            "choose a smaller MODEL or MAX_TOKENS"
            if cost.ram
            else "choose a smaller MODEL"
        )
    else:
        loading += processes * cost.total
        advice = "choose a machine with a GPU, or a smaller MODEL"
    return [*needed, Need("RAM", loading, ram.available, ram.total, advice)]


def _disk_need(shape: Shape) -> Need:
    """Return the space that the disk must have free for a model's files."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    folder = next(one for one in (cache, *cache.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    files = costs.weights(shape, "qlora" if shape.quantized else "lora", 2).total
    # `total` is `free`, because a restart frees no disk space.
    return Need("disk", files, free, free, f"delete files, for example in {folder}")


def _downloaded(model: str) -> bool:
    """Return whether the Hub's cache holds all weights already."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> str | None:
        found = try_to_load_from_cache(model, name)
        return found if isinstance(found, str) else None

    if find("model.safetensors"):
        return True
    index = find("model.safetensors.index.json")
    if index is None:
        return False
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return all(map(find, set(shards)))
