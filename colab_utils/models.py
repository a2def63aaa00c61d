"""Base models, tokenizers, and loading adapters again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import demo, hub, recipe, runtime
from colab_utils.data.chat_template import CHAT_TEMPLATE
from colab_utils.weights import shards as storage

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

OFFICIAL = "meta-llama/Llama-2-7b-hf"  # needs a token and an accepted licence
OPEN_MIRROR = "NousResearch/Llama-2-7b-hf"  # the same weights, no token


def choose(name: str = "auto") -> str:
    """The base model that `name` stands for: "demo", a Hub id or a folder.

    "auto" is Llama 2 7B on a GPU (the official repository when the token has access,
    else its open mirror) and "demo" on a CPU; the choice is printed. Anything else is
    taken as it is.
    """
    if name != "auto":
        return name
    if runtime.detect().device == "cpu":
        print("model: the demo model (3 M parameters), because there is no GPU here")
        return "demo"
    key = hub.token()
    if key and hub.can_read(OFFICIAL, key):
        print(f"model: {OFFICIAL}, because there is a GPU and your token has access")
        return OFFICIAL
    print(
        f"model: {OPEN_MIRROR}, the open mirror of Llama 2 7B, because there is a GPU"
    )
    return OPEN_MIRROR


def location(name: str) -> str:
    """Where transformers finds a model: the bundled one's folder for "demo"."""
    return str(demo.MODEL) if name == "demo" else name


def _token(name: str) -> str | None:
    """The token to load a model with; a folder needs none, so none is looked for."""
    return None if Path(location(name)).is_dir() else hub.token()


def _check_folder(name: str, *files: str) -> None:
    """Raise FileNotFoundError for a local folder that has none of the files."""
    path = Path(location(name))
    if path.is_dir() and not any((path / file).is_file() for file in files):
        raise FileNotFoundError(
            f"{path} holds no model that can be loaded: {' or '.join(files)} is "
            "missing. MODEL is the folder that save_pretrained wrote, or a Hub id."
        )


def torch_dtype() -> torch.dtype:
    """The dtype to compute in here, as torch's object: `torch.float16` on a T4."""
    import torch

    return getattr(torch, runtime.detect().dtype)


def quantization_config() -> BitsAndBytesConfig:
    """The 4-bit configuration that `02_finetune_qlora` writes out and explains.

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
    """A model's config: its shape, known before its weights are loaded.

    Raises what `load_model` raises.
    """
    from transformers import AutoConfig

    _check_folder(name, "config.json")
    key = _token(name)
    with hub.hub_errors(name, key):
        return AutoConfig.from_pretrained(location(name), token=key)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model, with Llama 2's template and `<unk>` as padding.

    A template or a pad token that the tokenizer brings stays. Padding must not be the
    end-of-sequence token, or the model never learns to stop; nor a token for which the
    model has no embedding, as the `<pad>` of some copies of Llama 2.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    _check_folder(name, "tokenizer.json", "tokenizer.model")
    key = _token(name)
    with hub.hub_errors(name, key):
        tokenizer = AutoTokenizer.from_pretrained(location(name), token=key)
        config = cached_file(
            location(name),
            "config.json",
            token=key,
            _raise_exceptions_for_missing_entries=False,
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    pad = tokenizer.pad_token
    if config and pad:  # an adapter's folder has none
        size = json.loads(Path(config).read_text(encoding="utf-8")).get("vocab_size")
        if size and tokenizer.pad_token_id >= size:
            print(
                f"{pad} is no padding: its id is {tokenizer.pad_token_id}, and the "
                f"model has {size:,} embeddings"
            )
            pad = None
    if pad is None or pad == tokenizer.eos_token:
        if tokenizer.unk_token is None:
            raise ValueError(
                f"The tokenizer of {name} has neither a pad token nor <unk>. Set "
                "tokenizer.pad_token to a token that never occurs in your data."
            )
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    name: str, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """A causal language model on this machine's device, in its compute dtype.

    With `quantization` the linear layers are stored in 4 bits; a repository that is
    quantised already is taken as it is. Raises PermissionError, FileNotFoundError or
    ConnectionError with what to do when it can't be downloaded.
    """
    from transformers import AutoModelForCausalLM

    config, key, dtype = load_config(name), _token(name), torch_dtype()
    with hub.hub_errors(name, key):
        given = {"quantization_config": quantization} if quantization else {}
        if getattr(config, "quantization_config", None):
            given = {}
            print(f"{name} is quantised already: taken as it is")
        if config.model_type == "llama":
            from colab_utils.fast import warmup as compiling

            compiling.prepare(config, dtype)  # while the weights are read
        model = AutoModelForCausalLM.from_pretrained(
            location(name),
            dtype=dtype,
            device_map={"": 0 if runtime.detect().device == "cuda" else "cpu"},
            token=key,
            **given,
        )
    for module in model.modules():
        if hasattr(module, "quant_state"):  # its repository may name another dtype
            module.compute_dtype = dtype
        # On CPUs with AVX512-BF16 bitsandbytes repacks a weight at its first inference,
        # and from then on the gradients that pass through it are wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    # Llama 2's repository ships sampling settings; here answers are greedy and as long
    # as `max_new_tokens` says, unless a call asks for something else.
    model.generation_config.update(
        do_sample=False, temperature=None, top_p=None, max_length=None
    )
    return model


def load_adapter(folder: Path) -> tuple[PeftModel | PreTrainedModel, Tokenizer]:
    """The tuned model of `02_finetune_qlora`, ready to generate, and its tokenizer.

    The base model is loaded the way it was trained: in 4 bits for QLoRA, in 16 bits for
    LoRA. After full fine-tuning the folder holds a whole model.
    """
    made = recipe.read(folder)
    tokenizer = load_tokenizer(str(folder))
    if made["method"] == "full":
        return load_model(str(folder)).eval(), tokenizer
    from peft import PeftModel

    quantization = quantization_config() if made["method"] == "qlora" else None
    base = load_model(made["base_model"], quantization)
    model = PeftModel.from_pretrained(base, folder).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # trained in 32 bits; to answer, the base's dtype will do
            parameter.data = parameter.data.to(base.dtype)
    return model, tokenizer


@contextmanager
def in_mode(model: PreTrainedModel, training: bool) -> Iterator[None]:
    """The model with dropout (`training`) or without, and afterwards as it was."""
    if model.training == training:  # to say it to all modules of 7B takes a while
        yield
        return
    model.train(training)
    try:
        yield
    finally:
        model.train(not training)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Trainable and all parameters; a 4-bit weight counts as the weights it holds."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def folder(name: str, weights: str = "*.safetensors") -> Path:
    """The local folder of a model's files, downloaded where necessary.

    Raises FileNotFoundError, with what to do, when it has no such weights.
    """
    path = Path(location(name))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    key, texts = hub.token(), ["*.jinja", "merges.txt", "LICENSE*", "USE_POLICY*"]
    with hub.hub_errors(name, key):
        files = [weights, "*.json", "tokenizer*", *texts]
        path = Path(snapshot_download(name, allow_patterns=files, token=key))
    if not any(path.glob(weights)):
        raise FileNotFoundError(storage.no_safetensors(name))
    return path
