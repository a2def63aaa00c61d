"""Compute a model's memory before anything is loaded; measure it afterward.

Read in this order: `costs` (bytes of weights, adapters, generation), `activations` and
`step` (bytes of a training step), `planning` (the fastest way to train that fits),
`exchange` (of gradients, between GPUs), `needs` (the check of the machine before a
download), `meter` (the memory that is free, and that was used).
"""

from colab_utils.memory.costs import (
    METHODS,
    Memory,
    adapter_parameters,
    gathered_bytes,
    inference,
    kv_cache_bytes,
    ram_to_load,
    ram_to_merge,
)
from colab_utils.memory.exchange import exchange
from colab_utils.memory.meter import budget, free_gpu, free_ram, peak, ram, release
from colab_utils.memory.needs import preflight
from colab_utils.memory.planning import Plan, gather_seconds, plan, seconds
from colab_utils.memory.step import at_loss, estimate
from colab_utils.runtime import GIB

__all__ = [
    "GIB",
    "METHODS",
    "Memory",
    "Plan",
    "adapter_parameters",
    "at_loss",
    "budget",
    "estimate",
    "exchange",
    "free_gpu",
    "free_ram",
    "gather_seconds",
    "gathered_bytes",
    "inference",
    "kv_cache_bytes",
    "peak",
    "plan",
    "preflight",
    "ram",
    "ram_to_load",
    "ram_to_merge",
    "release",
    "seconds",
]
