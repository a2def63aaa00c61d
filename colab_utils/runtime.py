"""The machine that a notebook runs on: its GPU, compute dtype, and kind of session."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import libraries

if TYPE_CHECKING:
    from tqdm import tqdm

GIB = 2**30

# Messages that libraries log although nothing is wrong: the logger, a pattern of the
# message, and the reason to hide it. All other messages stay.
IGNORED_MESSAGES = {
    # A faster CPU kernel is optional; bitsandbytes computes the same without it.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward",
    # `models.load_tokenizer` chooses the pad token and prints it, and some models have
    # no BOS token. Any other change of BOS or EOS would be a mistake, and is shown.
    # A resumed run computes its logging interval, a share of the steps, anew.
    "transformers.trainer_utils": (
        r"new PAD/BOS/EOS.*: \{('bos_token_id': None)?(, )?('pad_token_id': \d+)?\}"
        r"|checkpoint directory: \n\tlogging_steps: [^\n]*$"
    ),
    # Each packed document attends to itself only, on the fast path and with SDPA's
    # mask: a test checks both.
    "trl.trainer.sft_trainer": r"but the attention implementation is not set to a sup",
    # `hub.token()` has printed already which token is used, or that there is none.
    "huggingface_hub.utils._http": r"sending unauthenticated requests to the HF Hub",
}


# How to get a GPU on a free machine.
GPU_SWITCH = {
    "Colab": "Runtime > Change runtime type > T4 GPU",
    "Kaggle": "Settings > Accelerator > GPU T4 x2",
}


# `quiet` leaves the first GPU visible, and notes them all here: EVERY, or what the
# variable CUDA_VISIBLE_DEVICES was.
ALL_GPUS, EVERY = "COURSE_GPUS", "all"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")


def on_kaggle() -> bool:
    """Return whether this is a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def on_colab() -> bool:
    """Return whether this is Google Colab."""
    # Kaggle's image is built on Colab's and may have its variables, too.
    return not on_kaggle() and (
        "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules
    )


def in_ci() -> bool:
    """Return whether a continuous-integration service runs this (`CI` is set)."""
    return _is_set("CI")


def headless() -> bool:
    """Return whether the session is non-interactive (`HEADLESS=1`, or in CI)."""
    return _is_set("HEADLESS") or in_ci()


def place() -> str:
    """Return where this runs: "Kaggle", "Colab", "CI" or "this machine"."""
    places = {"Kaggle": on_kaggle(), "Colab": on_colab(), "CI": in_ci()}
    return next((name for name, here in places.items() if here), "this machine")


@dataclass(frozen=True)
class Runtime:
    """Hardware of this machine, and the compute dtype that follows from it.

    Sizes are in GiB: `memory_gib` is the GPU's total memory (None on a CPU), `ram_gib`
    the total RAM, `disk_gib` the free space in the current folder. `device` is "cuda"
    or "cpu".
    """

    place: str
    accelerator: str
    device: str
    memory_gib: float | None
    ram_gib: float
    disk_gib: float
    dtype: str
    reason: str


def dtype_for(capability: tuple[int, int] | None, name: str) -> tuple[str, str]:
    """Return the compute dtype for a GPU's compute capability, and the reason.

    A capability of None stands for a CPU. Only the capability decides:
    `torch.cuda.is_bf16_supported()` is True on a T4, which emulates bfloat16 slowly.

    >>> dtype_for((7, 5), "Tesla T4")[0]
    'float16'
    """
    if capability is None:
        return "float32", f"float32: {name} computes in full precision"
    version = ".".join(map(str, capability))
    dtype, verb = ("bfloat16", "has") if capability >= (8, 0) else ("float16", "has no")
    return dtype, (
        f"{dtype}: {name} is compute capability {version}, which {verb} bfloat16"
    )


def detect() -> Runtime:
    """Return the hardware of this machine, and print nothing."""
    import psutil
    import torch

    capability, memory = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        accelerator, device = properties.name, "cuda"
        capability = (properties.major, properties.minor)
        memory = properties.total_memory / GIB
        dtype, reason = dtype_for(capability, accelerator)
    elif torch.backends.mps.is_available():
        accelerator, device = "CPU", "cpu"
        dtype, reason = dtype_for(
            None, "Apple's GPU is not used (the course is untested on it); the CPU"
        )
    else:
        accelerator, device = "CPU", "cpu"
        dtype, reason = dtype_for(None, "no GPU that torch can use; the CPU")
    return Runtime(
        place=place(),
        accelerator=accelerator,
        device=device,
        memory_gib=memory,
        ram_gib=psutil.virtual_memory().total / GIB,
        disk_gib=shutil.disk_usage(Path.cwd()).free / GIB,
        dtype=dtype,
        reason=reason,
    )


def describe(needs_gpu: bool = False) -> Runtime:
    """Print the hardware of this machine in a few lines, and return it.

    With `needs_gpu`, a line on Colab and Kaggle says how to get a missing GPU.
    """
    found = detect()
    memory = f" with {found.memory_gib:.1f} GiB" if found.memory_gib else ""
    print(
        f"{found.place}: {found.accelerator}{memory}, {found.ram_gib:.1f} GiB RAM, "
        f"{found.disk_gib:.0f} GiB free disk"
    )
    print(found.reason)
    if needs_gpu and found.device == "cpu" and found.place in GPU_SWITCH:
        print(
            f"There is no GPU. To get one: {GPU_SWITCH[found.place]}, then run again "
            "from the top."
        )
    return found


def gpus() -> list[str]:
    """Return the GPUs that the course may use, as CUDA_VISIBLE_DEVICES names them.

    ["0", "1"] on Kaggle with two T4s, and [] without a GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", EVERY)
    visible = os.environ.get(ALL_GPUS, visible)
    if visible != EVERY:
        return list(filter(None, visible.split(",")))
    if detect().device != "cuda":
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True
    )
    return [str(i) for i, _ in enumerate(listed.stdout.splitlines())]


def project_root() -> Path | None:
    """Return the clone of this project that contains the current folder, or None."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "colab_utils").is_dir():
            return folder
    return None


def progress(
    items: Iterable[Any] | None, label: str, *, rows: int = 0, **options: Any
) -> tqdm:
    """Wrap `items` in a progress bar that appears after a second, unless headless.

    If an item is a part of a dataset, `rows` is the number of rows in it: the bar then
    shows rows and rows a second. `options` are tqdm's. Without items (None), give
    `total` and call `update(n)`.
    """
    from tqdm.auto import tqdm

    if rows:
        options = {"unit": " rows", "unit_scale": rows if rows > 1 else True} | options
    return tqdm(items, desc=label, disable=headless(), delay=1, **options)


class _Matching(logging.Filter):
    """Drop the log records whose message matches a pattern."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern, re.DOTALL)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.search(record.getMessage())


def quiet() -> None:
    """Hide the messages in `IGNORED_MESSAGES`, and no others.

    Call it before peft, trl or transformers' BitsAndBytesConfig is imported: one of the
    messages appears at the import. It also sets environment variables that libraries
    read at their start, and imports some libraries in a faster way.
    """
    # Tokenizers warn when a data loader forks; this package tokenizes in one thread.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The notebook computes on one GPU. With more, transformers' trainer would copy the
    # model to each, which a quantized model does not survive. `training.parallel`
    # starts a process for each GPU instead.
    if ALL_GPUS not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", EVERY)
        os.environ[ALL_GPUS] = visible
        first = "0" if visible == EVERY else visible.partition(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
    # Packed rows differ in length and fragment torch's cache of GPU memory: 1 GiB was
    # lost in the largest planned run, 0.4 GiB with expandable segments (bench/LOG.md).
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ["PYTORCH_ALLOC_CONF"] = allocator = "expandable_segments:True"
        if torch := sys.modules.get("torch"):  # too late for the variable
            torch._C._accelerator_setAllocatorSettings(allocator)
    for name, pattern in IGNORED_MESSAGES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Matching) for known in logger.filters):
            logger.addFilter(_Matching(pattern))
    libraries.load()
