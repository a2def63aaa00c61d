"""Compile the kernels for a T4 (compute capability 7.5) down to machine code, on a CPU.

    PYTHONPATH=.:tests python -m helpers.compile_for_75

Any Python with torch and triton can run it. It prints a line for each kernel and model,
then everything as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from colab_utils.fast import warmup
from helpers import kernels

TARGET = GPUTarget("cuda", 75, 32)
SHARED = 48 * 1024  # bytes that a program gets without asking the driver for more
CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


class WithoutGPU:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class AsT4:
    """Triton's driver of the GPU here, but with a T4 as its target."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_current_target(self) -> GPUTarget:
        return TARGET


@contextlib.contextmanager
def on_this_gpu() -> Iterator[set[str]]:
    """Run kernels as their PTX for a T4; the result collects the names of those loaded.

    The driver of any newer GPU compiles that PTX to its own machine code.
    """
    loaded = set()

    def keep_ptx(self: CUDABackend, ptx: str, metadata: dict, *_: Any) -> bytes:
        assert re.search(r"^\.target sm_75\b", ptx, re.MULTILINE), ptx[:500]
        loaded.add(metadata["name"])
        return ptx.encode() + b"\0"

    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        mock.patch.object(CUDABackend, "make_cubin", keep_ptx),
    ):
        real = driver.active
        driver.set_active(AsT4(real))
        try:
            yield loaded
        finally:
            driver.set_active(real)


def compile_only(launch: Callable[[], None]) -> list[dict[str, Any]]:
    """Compile every kernel that `launch` runs, and run none; return what they need.

    Each result holds the kernel's name, its problems on a T4, and the registers and
    bytes of its machine code.
    """
    results = []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, **options: Any) -> None:
        result = {"kernel": self.fn.__name__}
        try:
            result |= examine(run(self, *args, **options | {"warmup": True}))
        except Exception as error:
            result["problems"] = [f"does not compile: {error} {error.__cause__ or ''}"]
        results.append(result)

    driver.set_active(WithoutGPU())
    with mock.patch.object(JITFunction, "run", record):
        launch()
    return results


def examine(kernel: Any) -> dict[str, Any]:
    """Return the problems of a compiled kernel, and the sizes in its machine code."""
    sizes = usage(kernel.asm["cubin"])
    shared = kernel.metadata.shared + sizes["SHARED"]
    code = kernel.asm["ttir"]
    problems = {
        f"the machine code is for sm_{sizes['sm']}": sizes["sm"] != 75,
        f"spills: {sizes['STACK']} bytes of stack": sizes["STACK"] or sizes["LOCAL"],
        f"{shared} bytes of shared memory": shared >= SHARED,
        "bfloat16": "bf16" in code,
        "float8": "f8E" in code,
        "no float16 argument": "!tt.ptr<f16>" not in code,
    }
    found = [problem for problem, there in problems.items() if there]
    return {"problems": found, "registers": sizes["REG"], "shared": shared}


@functools.cache
def usage(cubin: bytes) -> dict[str, int]:
    """Return the registers, bytes and architecture (`sm`) of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = "".join(
            subprocess.run(
                [CUOBJDUMP, option, file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for option in ("--list-elf", "--dump-resource-usage")
        )
    sizes = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)
    found = {name: int(size) for name, size in sizes}
    return found | {"sm": int(re.findall(r"\.sm_(\d+)\.cubin", text)[0])}


def as_nf4(weight: torch.Tensor, **_: Any) -> tuple[torch.Tensor, SimpleNamespace]:
    """Return zeros in the layout that bitsandbytes' `quantize_4bit` returns."""
    blocks = weight.numel() // 64
    state = SimpleNamespace(
        shape=weight.shape,
        absmax=torch.zeros(blocks, dtype=torch.uint8),
        code=torch.zeros(16),
        offset=torch.zeros(()),
        state2=SimpleNamespace(code=torch.zeros(256), absmax=torch.zeros(1)),
    )
    return torch.zeros(32 * blocks, 1, dtype=torch.uint8), state


def main() -> None:
    # Some environments have no bitsandbytes; others must find what is missing there.
    functional = SimpleNamespace(quantize_4bit=as_nf4)
    sys.modules["bitsandbytes"] = SimpleNamespace(functional=functional)
    sys.modules["bitsandbytes.functional"] = functional
    results = []
    start = time.perf_counter()
    for name, shape in kernels.MODELS.items():
        for kind in (warmup.compile_training, warmup.compile_decoding):
            launch = functools.partial(kind, shape, torch.float16, "cpu")
            results += [{"model": name} | found for found in compile_only(launch)]
    for found in results:
        print(*found.values(), sep="\t")
    print(f"triton {triton.__version__}: {time.perf_counter() - start:.0f} s")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
