"""Find a model and load it: config, tokenizer, weights, and an adapter with its base.

`sources` finds a model's files: bundled, in a folder or on the Hub. `loading` reads
them with transformers and PEFT, `sharded` layer by layer for several GPUs.
`special_tokens` chooses the pad token, finds the tokens that end an answer, and adds
tokens. `choosing` picks the model for "auto", and refuses one that the course can't
train. `identity` recognizes a model by its weights.
"""

from colab_utils.models.choosing import resolve_model
from colab_utils.models.identity import fingerprint
from colab_utils.models.loading import (
    count_parameters,
    in_mode,
    load_adapter,
    load_config,
    load_gguf,
    load_model,
    load_tokenizer,
    quantization_config,
    torch_dtype,
)
from colab_utils.models.sharded import load_sharded
from colab_utils.models.sources import download, location
from colab_utils.models.special_tokens import add_tokens, stop_tokens

__all__ = [
    "add_tokens",
    "count_parameters",
    "download",
    "fingerprint",
    "in_mode",
    "load_adapter",
    "load_config",
    "load_gguf",
    "load_model",
    "load_sharded",
    "load_tokenizer",
    "location",
    "quantization_config",
    "resolve_model",
    "stop_tokens",
    "torch_dtype",
]
