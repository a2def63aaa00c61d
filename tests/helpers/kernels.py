"""The package's Triton kernels, and the models whose sizes they are tested with."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from colab_utils import models
from colab_utils.shape import Shape

ROOT = Path(__file__).resolve().parents[2]


def shape(
    width: int,
    inner: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int,
    family: str = "llama",
) -> Shape:
    """Return the shape of a model with one layer."""
    config: Any = SimpleNamespace(
        model_type=family,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    return Shape.from_config(config)


def demo_shape() -> Shape:
    config = json.loads(Path(models.location("demo"), "config.json").read_text("utf-8"))
    return Shape.from_config(SimpleNamespace(**config))  # type: ignore[arg-type]


# The sizes in published configs. Qwen 2.5 has biases, Qwen 3 has norms of the heads.
MODELS = {
    "Llama 2 7B": shape(4096, 11008, 32, 32, 128, 32000),
    "Llama 2 13B": shape(5120, 13824, 40, 40, 128, 32000),
    "Llama 3.2 1B": shape(2048, 8192, 32, 8, 64, 128256),
    "Llama 3.1 8B": shape(4096, 14336, 32, 8, 128, 128256),
    "TinyLlama 1.1B": shape(2048, 5632, 32, 4, 64, 32000),
    "demo": demo_shape(),
    "Qwen 2.5 7B": shape(3584, 18944, 28, 4, 128, 152064, "qwen2"),
    "Qwen 3 4B": shape(2560, 9728, 32, 8, 128, 151936, "qwen3"),
}
# The functions of `kernel_checks`, by name.
CHECKS = (
    *("dequantize_nf4", "few_rows", "norm", "add_norm", "norm_backward", "norm_heads"),
    *(
        "rotate",
        "swiglu",
        "cross_entropy",
        "swiglu_backward",
        "step_on_a_cache",
        "step_in_parts",
        "step_of_rows_that_share_a_cache",
    ),
    "all_kernels_of_a_model",
)


def names() -> set[str]:
    """Return the names of all functions of `colab_utils.fast` under `@triton.jit`."""
    trees = (
        ast.parse(path.read_text("utf-8"))
        for path in (ROOT / "colab_utils/fast").rglob("*.py")
    )
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(d) for d in node.decorator_list)
    }


def run_program(name: str, **env: str) -> Any:
    """Run a program of this folder; return what it prints last, as JSON.

    Triton chooses its interpreter or a driver once in a process, so what uses Triton in
    another way is a program. The folders of PYTHONPATH come first: one of them may hold
    another Triton.
    """
    path = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    with tempfile.TemporaryDirectory() as cache:
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        run = subprocess.run(
            [sys.executable, "-m", f"helpers.{name}"],
            env=os.environ | settings | {"TRITON_CACHE_DIR": cache} | env,
            cwd=ROOT,
            timeout=900,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])
