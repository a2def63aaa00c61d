"""Weights on disk: read, merge, verify and export them, one block at a time.

`merge` adds a LoRA adapter to its base, and `write_classifier` a head. `verify`
compares the merged model with base and adapter. `write_gguf` and `write_modelfile`
export it for llama.cpp and Ollama. None of them holds a whole model in memory. Read the
files in this order: shards (safetensors), adapters (LoRA), vocabulary (added tokens),
nf4 (QLoRA's base); merge_blocks, merge_inputs, merging; verifying; gguf_layout,
gguf_blocks, gguf_tokenizer, gguf, modelfile; classifier.
"""

from colab_utils.weights.adapters import read_adapter
from colab_utils.weights.classifier import write_classifier
from colab_utils.weights.gguf import write_gguf
from colab_utils.weights.merge_blocks import merged_weight
from colab_utils.weights.merging import merge
from colab_utils.weights.modelfile import write_modelfile
from colab_utils.weights.shards import convert_bin, find_shards
from colab_utils.weights.verifying import verify

__all__ = [
    "convert_bin",
    "find_shards",
    "merge",
    "merged_weight",
    "read_adapter",
    "verify",
    "write_classifier",
    "write_gguf",
    "write_modelfile",
]
