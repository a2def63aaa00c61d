"""Load a model's config, tokenizer and weights, or an adapter with its base model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from colab_utils import recipe, replacement, runtime
from colab_utils.data.tokens.chat_template import choose_template
from colab_utils.fast import warmup
from colab_utils.memory.needs import check_weights
from colab_utils.models.sources import Source
from colab_utils.models.special_tokens import as_ids, set_padding
from colab_utils.weights import vocabulary
from colab_utils.weights.adapters import check_patterns

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn.modules import Linear4bit
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def torch_dtype() -> torch.dtype:
    """Return the compute dtype of this machine: `torch.float16` on a T4."""
    import torch

    return getattr(torch, runtime.detect().dtype)


def quantization_config() -> BitsAndBytesConfig:
    """Return the NF4 configuration that `02_finetune_qlora` spells out and explains.

    Source: Dettmers et al. 2023, "QLoRA".
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(),
    )


def load_config(name: str) -> PretrainedConfig:
    """Load a model's config, without its weights.

    Raises PermissionError, FileNotFoundError or ConnectionError, each with the next
    step. Raises ValueError for a model that needs code from its repository.
    """
    from transformers import AutoConfig

    source = Source(name)
    source.check_files("config.json")
    with source.access() as token:
        return AutoConfig.from_pretrained(
            source.path, token=token, trust_remote_code=False
        )


def load_tokenizer(name: str, template: str = "auto") -> Tokenizer:
    """Load a model's tokenizer, and choose its chat template and its pad token.

    `template` is "auto", "own" or "course": see `choose_template`. The pad token is one
    that is never trained on and has an embedding; it is the EOS token only if every
    special token is in use. A choice that is not the authors' is printed. Padding is on
    the right. Raises the errors of `load_config` and of `choose_template`.
    """
    from transformers import AutoTokenizer

    source = Source(name)
    source.check_files("tokenizer.json", "tokenizer.model")
    with source.access() as token:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, token=token, trust_remote_code=False
        )
    choose_template(tokenizer, name, template)
    # An adapter's folder has neither of the two files.
    config = source.read_json("config.json")
    text = config.get("text_config", config)  # Gemma 3 nests it
    stops = source.read_json("generation_config.json").get("eos_token_id")
    set_padding(tokenizer, text.get("vocab_size"), as_ids(stops))
    return tokenizer


def load_model(
    name: str, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load a causal language model onto this machine's device, in its compute dtype.

    With `quantization` the linear layers are stored in 4 bits. A repository that is
    already quantized keeps its own settings. Raises the errors of `load_config`, and
    MemoryError if the weights do not fit the free memory of the GPU, or the free RAM.
    """
    config, dtype = load_config(name), torch_dtype()
    if getattr(config, "quantization_config", None):
        print(f"{name} is already quantized: its own settings are used")
        quantization = None
    check_weights(config, name, quantization is not None, dtype.itemsize)
    warmup.prepare(config, dtype)  # compiles while the weights are loaded
    model = _load_weights(Source(name), dtype, quantization)
    correct_quantized(model, dtype)
    reset_generation(model)
    return model


def load_gguf(file: Path | str) -> PreTrainedModel:
    """Load the model of a GGUF file, dequantized to this machine's compute dtype.

    transformers reads it. Raises FileNotFoundError if there is no such file.
    """
    from transformers import AutoModelForCausalLM

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: write it in notebook 04.")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch_dtype(), device_map=_place()
    )
    reset_generation(model)
    return model


def _place() -> dict[str, int | str]:
    return {"": 0 if runtime.detect().device == "cuda" else "cpu"}


def _load_weights(
    source: Source, dtype: torch.dtype, quantization: BitsAndBytesConfig | None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    given = {"quantization_config": quantization} if quantization else {}
    with source.access() as token:
        return AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            device_map=_place(),
            token=token,
            trust_remote_code=False,
            **given,
        )


def correct_quantized(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Set the compute dtype of 4-bit layers, and keep their gradients right on CPUs."""
    for module in model.modules():
        linear = cast("Linear4bit", module)
        if hasattr(module, "quant_state"):  # the repository may name another dtype
            linear.compute_dtype = dtype
        # On CPUs with AVX512-BF16 bitsandbytes repacks a weight at its first inference.
        # After that, the gradients that pass through the layer are wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            linear.support_avx512bf16_for_cpu = False


def reset_generation(model: PreTrainedModel) -> None:
    """Decode greedily by default, and limit answers by `max_new_tokens` alone.

    Llama 2's repository ships sampling settings and a `max_length`.
    """
    model.generation_config.update(
        do_sample=False, temperature=None, top_p=None, max_length=None
    )


def load_adapter(
    folder: Path | str, trainable: bool = False
) -> tuple[PeftModel | PreTrainedModel, Tokenizer]:
    """Load a model that `02_finetune_qlora` trained, and its tokenizer.

    The base model is loaded as in training: in NF4 for QLoRA, in the compute dtype for
    LoRA. After full fine-tuning the folder holds a whole model. A `trainable` adapter
    stays in float32, to be trained further; raises ValueError for a whole model then.
    Raises RuntimeError if another process replaces the folder meanwhile, and the errors
    of `load_model` and of `weights.adapters.check_patterns`.
    """
    folder = Path(folder)
    with replacement.reading(folder):
        return _load_adapter(folder, trainable)


def _load_adapter(
    folder: Path, trainable: bool
) -> tuple[PeftModel | PreTrainedModel, Tokenizer]:
    made = recipe.read(folder)
    tokenizer = load_tokenizer(str(folder))
    if made["method"] == "full":
        if trainable:
            raise ValueError(
                f"{folder.name} is a whole model, not an adapter: set MODEL to {folder}"
            )
        return load_model(str(folder)).eval(), tokenizer
    from peft import PeftModel

    quantization = quantization_config() if made["method"] == "qlora" else None
    base = load_model(made["base_model"], quantization)
    vocabulary.fit(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    check_patterns(config, [name for name, _ in base.named_modules()])
    model = PeftModel.from_pretrained(base, folder, is_trainable=trainable).eval()
    if trainable:
        return model, tokenizer
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # trained in float32; inference needs only the base's dtype
            parameter.data = parameter.data.to(base.dtype)
    return model, tokenizer


@contextmanager
def in_mode(model: PreTrainedModel, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode; restore its mode at the end."""
    if model.training == training:  # train() walks all modules, which is slow for 7B
        yield
        return
    model.train(training)
    try:
        yield
    finally:
        model.train(not training)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return the trainable and the total parameter count.

    A 4-bit weight counts with the shape that it has when dequantized.
    """
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
