"""Install the packages that Colab or Kaggle lacks, and replace none that it has."""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from colab_utils import runtime

# Colab lacks these. requirements.txt pins the same versions, and a test compares them.
EXTRA = ("trl==0.29.1", "bitsandbytes==0.50.2", "gguf==0.19.0")
# Notebook 12 asks for this one: it takes longer to install than all others together.
HARNESS = "lm_eval==0.4.13"
# Colab has these. Their versions stay; a missing one is installed.
SHIPPED = (
    "accelerate",
    "cloudpickle",
    "datasets",
    "huggingface_hub",
    "ipywidgets",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "psutil",
    "python-dotenv",
    "safetensors",
    "scikit-learn",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
# With an older torchao, peft >= 0.19 refuses LoRA on layers that are not quantized.
TORCHAO = (0, 16)
# What pip prints if it reaches no package index.
OFFLINE = re.compile(
    r"NewConnectionError|ConnectTimeoutError|NameResolutionError|versions: none\)"
)
PIP_VERSION = re.compile(  # the only versions that pip accepts in a constraints file
    r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?",
    re.ASCII,
)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _missing(pins: Sequence[str]) -> list[str]:
    """Return the requirements that pip has to install: of `pins` and of SHIPPED."""
    extra = [pin for pin in pins if _version(pin.split("==")[0]) != pin.split("==")[1]]
    return extra + [name for name in SHIPPED if _version(name) is None]


def _old_torchao() -> str | None:
    found = _version("torchao")
    numbers = tuple(map(int, re.findall(r"\d+", found or "")[:2]))
    return found if found and numbers < TORCHAO else None


def _constraints(pins: Sequence[str]) -> str:
    """Return `name==version` lines of all installed packages except those of `pins`."""
    names = set()
    for found in metadata.distributions():
        # An interrupted pip leaves folders without metadata.
        with contextlib.suppress(TypeError, KeyError):
            names.add(_canonical(found.metadata["Name"]))
    names -= {_canonical(pin.split("==")[0]) for pin in pins}
    kept = {name: _version(name) or "" for name in sorted(names)}
    return "".join(
        f"{name}=={version}\n"
        for name, version in kept.items()
        if PIP_VERSION.fullmatch(version)
    )


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(_failure(done.stdout + done.stderr))


def _failure(output: str) -> str:
    """Return a sentence that says what stopped pip; pip's last lines if they help."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = "\n".join(["Its last lines:", *lines[-8:]])
    needs = re.findall(r"(\S+ \S+) depends on (([\w.-]+).*)", output)
    for name, version in re.findall(r"\(constraint\) (\S+)==(\S+)", output):
        for who, what, needed in needs:
            if _canonical(needed) == _canonical(name):
                return (
                    f"pip installed nothing: {who} needs {what}, which would replace "
                    f"{name} {version} under the running notebook. The versions in "
                    f"colab_utils/install.py do not fit this image. {last}"
                )
    if OFFLINE.search(output):
        advice = "check the network"
        if runtime.on_kaggle():
            advice = "verify your phone, turn on Settings > Internet"
        return f"pip reached no package index: {advice}, then run this cell again."
    return f"pip failed. {last}"


def _stale() -> list[str]:
    """Return the packages whose loaded version differs from the installed one."""
    found = []
    for name in [pin.split("==")[0] for pin in EXTRA] + [*SHIPPED, "torchao"]:
        module = sys.modules.get(name)
        loaded = str(getattr(module, "__version__", "")).partition("+")[0]
        there = (_version(name) or "none").partition("+")[0]
        if loaded and loaded != there:
            found.append(f"{name} {loaded} (on disk: {there})")
    return found


def missing(*more: str) -> None:
    """Install the packages of `EXTRA` and `more` that are missing, and print one line.

    Installed packages keep their versions. If that is impossible, pip installs nothing,
    and RuntimeError names the package that would be replaced. A torchao that peft does
    not accept is removed. If nothing is missing, this takes milliseconds.
    """
    pins = (*EXTRA, *more)
    done, missing, torchao = [], _missing(pins), _old_torchao()
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "constraints.txt"
            kept.write_text(_constraints(pins))
            # Without --quiet, which would hide the requirement that failed.
            _pip("install", "--constraint", str(kept), *missing)
        importlib.invalidate_caches()
        names = [pin.split("==")[0] for pin in missing]
        done.append(f"installed {', '.join(f'{n} {_version(n)}' for n in names)}")
    if torchao:
        _pip("uninstall", "--yes", "torchao")
        importlib.invalidate_caches()
        done.append(f"removed torchao {torchao} (peft refuses float16 LoRA with it)")
    print(f"set-up: {'; '.join(done) or 'nothing to do'}")
    if stale := _stale():
        menu = "Runtime > Restart session"
        if runtime.on_kaggle():
            menu = "Run > Restart & clear cell outputs"
        print(
            f"This notebook already loaded {', '.join(stale)}: choose {menu}, then run "
            "again from the top."
        )
