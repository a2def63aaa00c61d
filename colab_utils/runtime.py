"""Where a notebook runs, what it may compute with, and where its files go."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

GIB = 2**30

# Which notebook makes a folder of the workspace, and which parameter names it.
MAKERS = {
    "datasets": ("01_create_dataset", "DATASET_NAME"),
    "adapters": ("02_finetune_qlora", "ADAPTER_NAME"),
    "models": ("04_merge_and_publish", "MODEL_NAME"),
}

# What the libraries print although nothing is wrong: the logger, the message, and why
# a reader need not see it. Everything else they say stays.
NOISE = {
    # A faster CPU kernel is optional; bitsandbytes computes the same without it.
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward",
    # The notebooks set the padding token to <unk> on purpose, and say so. (A changed
    # BOS or EOS is in the same message, and would be a mistake: that is still shown.)
    "transformers.trainer_utils": r"new PAD/BOS/EOS.*tokens: \{'pad_token_id': \d+\}",
    # Packed rows keep to themselves here, on the fast path and by sdpa's mask: tested.
    "trl.trainer.sft_trainer": r"but the attention implementation is not set to a sup",
    # `auth.token()` has said already which token is used, or that there is none.
    "huggingface_hub.utils._http": r"sending unauthenticated requests to the HF Hub",
}

_on_drive = False
_announced: set[Path] = set()


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")


def on_kaggle() -> bool:
    """Whether this is a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def on_colab() -> bool:
    """Whether this is Google Colab."""
    # Kaggle's image is built on Colab's, and may carry its variables.
    return not on_kaggle() and (
        "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules
    )


def in_ci() -> bool:
    """Whether a continuous-integration service runs this (`CI` is set)."""
    return _is_set("CI")


def headless() -> bool:
    """Whether nobody watches, so nothing may ask (`HEADLESS=1`, or in CI)."""
    return _is_set("HEADLESS") or in_ci()


@dataclass(frozen=True)
class Runtime:
    """What this machine offers, and the compute dtype that follows from it.

    Sizes are GiB: `memory_gib` the accelerator's in total (None on a CPU), `ram_gib` in
    total, `disk_gib` free in the current folder. `device` is "cuda" or "cpu".
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
    """The compute dtype for a GPU's compute capability (None: a CPU), and the reason.

    The capability decides alone: `torch.cuda.is_bf16_supported()` counts emulation, so
    it says yes on a T4, where bfloat16 is emulated and slow.

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
    """What this machine offers, as a `Runtime`; prints nothing."""
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
            None, "Apple's GPU is left idle (the course is untested on it), and the CPU"
        )
    else:
        accelerator, device = "CPU", "cpu"
        dtype, reason = dtype_for(None, "no GPU that torch can use; the CPU")
    places = {"Kaggle": on_kaggle(), "Colab": on_colab(), "CI": in_ci()}
    return Runtime(
        place=next((name for name, here in places.items() if here), "this machine"),
        accelerator=accelerator,
        device=device,
        memory_gib=memory,
        ram_gib=psutil.virtual_memory().total / GIB,
        disk_gib=shutil.disk_usage(Path.cwd()).free / GIB,
        dtype=dtype,
        reason=reason,
    )


def describe() -> Runtime:
    """Print what this machine offers in a few lines, and return it."""
    found = detect()
    memory = f" with {found.memory_gib:.1f} GiB" if found.memory_gib else ""
    print(
        f"{found.place}: {found.accelerator}{memory}, {found.ram_gib:.1f} GiB RAM, "
        f"{found.disk_gib:.0f} GiB free disk"
    )
    print(found.reason)
    if found.place == "Colab" and found.device == "cpu":
        print(
            "No GPU here. To have one: Runtime > Change runtime type > T4 GPU, then "
            "run again from the top."
        )
    return found


def project_root() -> Path | None:
    """The clone of this project that the current folder lies in, or None."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "colab_utils").is_dir():
            return folder
    return None


def _mount_drive() -> bool:
    if not on_colab():
        print("drive=True is ignored: Google Drive can be mounted on Colab only")
        return False
    if headless():
        print("drive=True is ignored: mounting Google Drive asks, and nobody watches")
        return False
    from google.colab import drive

    try:
        drive.mount("/content/drive")
    except Exception as error:  # Colab raises several types of its own here
        raise RuntimeError(
            f"Google Drive could not be mounted ({error}). Allow the access that the "
            "window asks for, or go on without Drive: workspace(drive=False)."
        ) from error
    return True


def workspace(drive: bool = False) -> Path:
    """The folder that holds datasets, adapters and models; made when it is missing.

    The environment variable `WORKSPACE` names it. Without that it is
    `MyDrive/llama-workspace` on Colab once `drive=True` was asked for, else `workspace`
    beside this project's README, or in the current folder when there is no clone.
    Raises OSError when it cannot be written.
    """
    global _on_drive
    named = os.environ.get("WORKSPACE", "").strip()
    if named and drive:
        print("drive=True is ignored: the environment variable WORKSPACE decides")
    elif drive and not _on_drive:
        _on_drive = _mount_drive()
    if named:
        path = Path(named).expanduser().absolute()
    elif _on_drive:
        path = Path("/content/drive/MyDrive/llama-workspace")
    else:
        path = (project_root() or Path.cwd()) / "workspace"
    problem = None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is None and not os.access(path, os.W_OK):
        problem = "it is read-only"
    if problem:
        raise OSError(
            f"The workspace {path} cannot be used: {problem}. Set the environment "
            "variable WORKSPACE to a folder that can be written, then run again."
        )
    if path not in _announced:
        _announced.add(path)
        lost = ", lost when this machine goes: set USE_DRIVE = True to keep it"
        kept = _on_drive or named or not on_colab()
        print(f"workspace: {path}{'' if kept else lost}")
    return path


def _check_name(kind: str, name: str) -> None:
    parameter = MAKERS[kind][1]
    plain = isinstance(name, str) and re.fullmatch(r"[^/\\\x00-\x1f]{1,80}", name)
    if not plain or ".." in name or name != name.strip(" .") or name.endswith(".part"):
        raise ValueError(
            f"{parameter} = {name!r} is no plain name: it names a folder in "
            f"workspace/{kind}, so it has 1 to 80 characters, no slash and no '..', "
            "and neither begins nor ends with a dot or a space."
        )


def new_artefact(kind: str, name: str) -> Path:
    """The folder `<workspace>/<kind>/<name>` that a notebook is about to make.

    Raises ValueError for a name that is no plain folder name, and FileExistsError when
    something stands there that the notebook did not make: it would be replaced.
    """
    _check_name(kind, name)
    folder = workspace() / kind / name
    restore(folder)
    marks = ("recipe.json", "checkpoints", "made_of.json")
    ours = any((folder / name).exists() for name in marks)
    if not ours and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} holds something that was not made here, and would be replaced. "
            f"Choose another {MAKERS[kind][1]}, or move that folder away."
        )
    return folder


def restore(folder: Path) -> None:
    """Put an older `folder` back where `replace` was killed between its two moves."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def replace(new: Path, folder: Path) -> None:
    """Move the finished folder `new` to `folder`, which stays whole until then.

    Killed at any moment, it leaves the older folder or the new one: in place, or where
    `restore` finds it.
    """
    restore(folder)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def require(**given: tuple) -> None:
    """Check parameters: NAME=(value, lowest, highest), or NAME=(value, *choices).

    Raises ValueError with the parameter's name, its value and what it may be.

    >>> require(RANK=(16, 1, 1024), METHOD=("qlora", "qlora", "lora", "full"))
    """
    for name, (value, *allowed) in given.items():
        if isinstance(allowed[0], str):
            good, may = value in allowed, f"one of {', '.join(map(repr, allowed))}"
        else:
            low, high = allowed
            kind = (int, float) if isinstance(low, float) else int
            good = isinstance(value, kind) and not isinstance(value, bool)
            good = good and low <= value <= high
            number = "a number" if isinstance(low, float) else "a whole number"
            may = f"{number} from {low:g} to {high:g}"
        if not good:
            raise ValueError(f"{name} = {value!r}, but it must be {may}.")


def artefact(kind: str, name: str) -> Path:
    """The finished folder `<workspace>/<kind>/<name>`; its recipe.json is there.

    `kind` is "datasets", "adapters" or "models". Raises ValueError for a name that is
    no plain folder name, and FileNotFoundError, which says what to run, when the folder
    is missing or unfinished.
    """
    if kind not in MAKERS:
        raise ValueError(f"kind is {kind!r}; it can be one of: {', '.join(MAKERS)}")
    notebook, parameter = MAKERS[kind]
    _check_name(kind, name)
    parent = workspace() / kind
    restore(parent / name)
    if (parent / name / "recipe.json").is_file():
        return parent / name
    state = "is unfinished (recipe.json is missing)"
    if not (parent / name).is_dir():
        state = "does not exist"
    there = sorted(recipe.parent.name for recipe in parent.glob("*/recipe.json"))
    names = f"set {parameter} to one of: {', '.join(there)}" if there else ""
    other = "\nMade in another Colab notebook? Set USE_DRIVE = True in both."
    raise FileNotFoundError(
        f"{parent / name} {state}. Run the notebook {notebook}, which makes it"
        + (f", or {names}." if names else f" ({parent} holds no finished one).")
        + (other if on_colab() and not _on_drive else "")
    )


def progress(items: Iterable[Any] | None, label: str, **options: Any) -> tqdm:
    """`items` under a bar that appears after a second; none when nobody watches.

    `options` are tqdm's: without items (None), give `total` and call `update(n)`.
    """
    from tqdm.auto import tqdm

    return tqdm(items, desc=label, disable=headless(), delay=1, **options)


class _Known(logging.Filter):
    """Drops the records whose message matches a pattern."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self.pattern = re.compile(pattern, re.DOTALL)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.search(record.getMessage())


def quiet() -> None:
    """Silence the messages of `NOISE`, which mean nothing here, and no other.

    Call it before peft, trl or transformers' BitsAndBytesConfig is imported: one of the
    messages appears at the import. It also sets what libraries read as they start.
    """
    # Tokenizers warn when a data loader forks; nothing here tokenizes in parallel.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Packed rows differ in length, and leave gaps in torch's cache of GPU memory: 1 GiB
    # in the plan's largest run, 0.4 where its segments can grow (bench/LOG.md).
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for name, pattern in NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Known) for known in logger.filters):
            logger.addFilter(_Known(pattern))
