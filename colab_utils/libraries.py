"""Import large libraries in less time: without parts that no notebook uses."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

# What transformers imports of other packages.
LATE = ("sklearn.metrics", "scipy.stats", "scipy.optimize")


def load() -> None:
    """Import bitsandbytes and transformers, if they are installed.

    What they leave in memory stays there. So it is kept out of garbage collection: each
    search for garbage, as `memory.release` starts one, takes a quarter of the time.
    """
    if "transformers" in sys.modules:  # frozen now, a model could not be freed later
        _import_bitsandbytes()
        return
    enabled = gc.isenabled()
    gc.disable()  # there is no garbage in imports
    try:
        _import_bitsandbytes()
        _import_transformers()
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
    atexit.register(gc.unfreeze)  # Triton lists what is left when Python ends


def _import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler, which alone takes four seconds.

    While it is imported, it passes two functions to `torch.compile`. It calls neither
    on a CPU nor on an NVIDIA GPU: for these it brings its own machine code.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    import torch

    compiler = torch.compile
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    try:
        importlib.import_module("bitsandbytes")
    finally:
        torch.compile = compiler


class _Late(ModuleType):
    """A stand-in for a module: its functions import the module when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return functools.partial(_call, self.__name__, name)


def _call(module: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def _import_transformers() -> None:
    """Import transformers without scikit-learn and SciPy, which takes two seconds.

    It imports a few functions of them, for what no notebook does: assisted generation,
    the metrics of GLUE, the loss of object detection.
    """
    if importlib.util.find_spec("transformers") is None:
        return
    late = [name for name in LATE if name not in sys.modules and _is_installed(name)]
    sys.modules |= {name: _Late(name) for name in late}
    try:
        for name in ("generation.utils", "data.metrics", "modeling_utils"):
            importlib.import_module(f"transformers.{name}")
    finally:
        for name in late:
            del sys.modules[name]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None
