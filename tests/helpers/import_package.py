"""Import every module of the installed package and read its data; print both as JSON.

Modules that need a library without a build for this system are listed as skipped.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from pathlib import Path

import colab_utils
from colab_utils import demo

# A library that some systems lack, and the reason to continue without it.
OPTIONAL = {"triton": "Triton has no build for this system"}


def import_modules() -> tuple[dict[str, str], dict[str, str]]:
    """Import all modules; returns the file of each, and the reason of each skip."""
    files, skipped = {}, {}
    found = pkgutil.walk_packages(colab_utils.__path__, "colab_utils.")
    for name in ["colab_utils", *(module.name for module in found)]:
        try:
            files[name] = str(importlib.import_module(name).__file__)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            skipped[name] = OPTIONAL[error.name]
    return files, skipped


def read_demo() -> dict[str, int]:
    """Read facts, questions, tokenizer and weights through their own readers."""
    from safetensors import safe_open
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.MODEL / "tokenizer.json"))
    with safe_open(demo.MODEL / "model.safetensors", framework="numpy") as weights:
        tensors = len(list(weights.keys()))
    return {
        "facts": len(demo.facts()),
        "invented facts": len(demo.facts(invented=True)),
        "questions": len(demo.questions()),
        "tokens": tokenizer.get_vocab_size(),
        "tensors": tensors,
    }


def hash_data(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that is not Python, by its path in `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }


if __name__ == "__main__":
    modules, left_out = import_modules()
    data = hash_data(Path(colab_utils.__file__).parent)
    report = {
        "version": colab_utils.__version__,
        "modules": modules,
        "skipped": left_out,
        "data": data,
        "demo": read_demo(),
    }
    print(json.dumps(report))
