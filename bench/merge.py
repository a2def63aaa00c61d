"""Measure RAM and time of merging a model of Llama 2 7B's shape.

    python bench/merge.py FOLDER [70B | tiny]

Writes the model (13.5 GB of random weights, three files) and an adapter of rank 16 to
FOLDER, which needs 30 GB. Measures, each in a process of its own: a copy of the files
and `weights.merge`, three times in turn after the files were read once; then
`weights.merge` into dequantized weights, PEFT's `merge_and_unload`, and
`weights.verify` of 400 tokens. A measurement ends when all data is on the disk.
Writes bench/results/merge.json: every run, and the median time of a merge divided by
that of a copy. `70B` is 10 of the 80 layers of Llama 2 70B (18 GB, in FOLDER 40 GB),
merged once in both ways, and writes merge-70b.json. `tiny` tests the script on a small
model.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from sampling import Sampler, each, settle

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3  # of a copy and a merge, because a disk's speed varies
WAYS = ("copy", "original") * ROUNDS + ("dequantized", "peft", "verify")
LARGE_WAYS = ("original", "dequantized")  # PEFT takes as much RAM as the model
SHAPES: dict[str, dict[str, int]] = {
    "7B": {},
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 10,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "tiny": {"hidden_size": 256, "intermediate_size": 512},
}


def make(folder: Path, shape: dict[str, int], files: int = 3) -> None:
    """Write base and adapter; their random weights repeat, which changes no result."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from colab_utils import models
    from colab_utils.shape import Shape

    config = LlamaConfig(architectures=["LlamaForCausalLM"], **shape)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True, exist_ok=True)
    adapter.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    noise = (torch.randn(1 << 22, generator=draw) * 0.02).half()

    def weight(*size: int) -> torch.Tensor:
        count = size[0] * (size[1] if len(size) > 1 else 1)
        return noise.repeat(-(-count // len(noise)))[:count].view(size).clone()

    names = [f"self_attn.{n}_proj" for n in "qkvo"]
    names += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    width, words = config.hidden_size, config.vocab_size
    sizes = list(Shape.from_config(config).linear_shapes().values())
    index, lora = {}, {}
    for part in range(files):
        tensors = {}
        for i in range(part, config.num_hidden_layers, files):
            stem = f"model.layers.{i}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{stem}{norm}.weight"] = weight(width)
            for name, (n, m) in zip(names, sizes, strict=True):
                tensors[f"{stem}{name}.weight"] = weight(m, n)
                lora[f"base_model.model.{stem}{name}.lora_A.weight"] = weight(16, n)
                lora[f"base_model.model.{stem}{name}.lora_B.weight"] = weight(m, 16)
        if part == 0:
            tensors["model.embed_tokens.weight"] = weight(words, width)
            tensors["lm_head.weight"] = weight(words, width)
            tensors["model.norm.weight"] = weight(width)
        file = f"model-{part + 1:05}-of-{files:05}.safetensors"
        save_file(tensors, base / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (base / "model.safetensors.index.json").write_text(text)
    config.save_pretrained(base)
    save_file({name: tensor.float() for name, tensor in lora.items()}, adapter / FILE)
    LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    ).save_pretrained(adapter)
    models.load_tokenizer("demo").save_pretrained(adapter)


FILE = "adapter_model.safetensors"


def measure(way: str, folder: Path) -> dict:
    """Measure one way, in this process."""
    import torch  # noqa: F401  (no import is part of a measured merge)

    from colab_utils import weights

    if way == "peft":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    if way == "dequantized":
        import bitsandbytes  # noqa: F401

    base, adapter, out = (folder / name for name in ("base", "adapter", "out"))
    shutil.rmtree(out, ignore_errors=True)
    if way == "verify":
        weights.merge(base, adapter, out)
    settle(base)
    with Sampler() as sampler:
        if way == "copy":
            subprocess.run(["cp", "-r", base, out], check=True)
        elif way == "peft":
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
            model.save_pretrained(out)
        elif way == "verify":
            weights.verify(base, adapter, out, [list(range(3, 103))] * 4)
        else:
            weights.merge(base, adapter, out, way)
        subprocess.run(["sync", "-f", folder], check=True)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {"way": way, "bytes": size, **sampler.result()}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "7B"
    if name in WAYS:
        print(json.dumps(measure(name, folder)))
        return
    if not (folder / "adapter" / "adapter_config.json").exists():
        make(folder, SHAPES[name])
    results = each(__file__, folder, LARGE_WAYS if name == "70B" else WAYS)
    found: dict = {"runs": results}
    if name != "70B":
        seconds = {w: [r["seconds"] for r in results if r["way"] == w] for w in WAYS}
        merge, copy = (statistics.median(seconds[w]) for w in ("original", "copy"))
        found = {"merge_over_copy": round(merge / copy, 2), **found}
        print(f"a merge took {found['merge_over_copy']} times a copy")
    if name != "tiny":
        file = RESULTS / ("merge-70b.json" if name == "70B" else "merge.json")
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
