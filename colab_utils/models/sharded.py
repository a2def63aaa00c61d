"""Load a 4-bit model that no single GPU holds, one decoder layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.models.loading import (
    correct_quantized,
    load_config,
    reset_generation,
    torch_dtype,
)
from colab_utils.models.sources import Source
from colab_utils.weights.shards import find_shards, tensors_of

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

LAYERS = "model.layers."


def load_sharded(
    name: str, quantization: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    """Load a 4-bit model for training, sharded over the processes of torch.distributed.

    The device holds this process's shard, the embeddings, the head, and one layer at a
    time; RAM holds one tensor. A repository that is already quantized keeps its own
    settings. Raises the errors of `load_config`, RuntimeError without a process group,
    and ValueError if the files lack a tensor of the model.
    """
    from colab_utils.fast import lora, sharding

    config, dtype = load_config(name), torch_dtype()
    model = _empty_model(config, dtype, quantization)
    inner = lora.llama(model)
    shards = sharding.prepare(inner)
    files = Files(Source(name).download("*.safetensors"), dtype)
    model.tie_weights()  # a tied head is not in the files
    names = {path for path, _ in model.named_parameters()}
    if missing := names - files.names.keys():
        raise ValueError(
            f"{files.folder} lacks {len(missing)} tensors of the model (the first is "
            f"{min(missing)}): download the model again."
        )
    for path in files.names:
        if not path.startswith(LAYERS):
            files.load(model, path)
    for i, layer in enumerate(lora.decoder_layers(inner)):
        for path in files.names:
            if path.startswith(f"{LAYERS}{i}."):
                files.load(model, path)
        shards.add(layer)
    for module in model.modules():  # those of the rotary embedding
        for key, buffer in module.named_buffers(recurse=False):
            setattr(module, key, buffer.to(files.device))
    model.tie_weights()  # loading has replaced the embeddings
    correct_quantized(model, dtype)
    reset_generation(model)
    return model.eval()


def _empty_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None,
) -> PreTrainedModel:
    """Return the model with 4-bit layers and without its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    stored = getattr(config, "quantization_config", None)
    settings = stored or quantization
    if settings is None:
        raise ValueError(
            "A sharded model has 4-bit weights: pass models.quantization_config()."
        )
    if stored:
        print(f"{config.name_or_path} is already quantized: its own settings are used")
    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=bool(stored))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantizer.preprocess_model(model, dtype=dtype, device_map=None)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    return model


class Files:
    """The safetensors files of a model folder."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        import torch

        self.folder, self.dtype = folder, dtype
        self.device = torch.device("cpu")
        if runtime.detect().device == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.names = {
            n: file for file in find_shards(folder) for n, _ in tensors_of(file)
        }

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the device; closing the file frees the RAM it took."""
        from safetensors import safe_open

        with safe_open(
            self.names[name], framework="pt", device=str(self.device)
        ) as file:
            return file.get_tensor(name)

    def load(self, model: PreTrainedModel, name: str) -> None:
        """Load one parameter of the model; quantize it if the model has it in 4 bits.

        Other tensors do nothing: a quantization state is read with its weight, and old
        files of Llama hold constants of the rotary embedding.
        """
        import torch
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

        path, _, attribute = name.rpartition(".")
        try:
            old, module = model.get_parameter(name), model.get_submodule(path)
        except AttributeError:
            return
        value = self.read(name)
        new: torch.nn.Parameter
        if not isinstance(module, Linear4bit) or attribute != "weight":
            new = torch.nn.Parameter(value.to(self.dtype), old.requires_grad)
        elif state := [n for n in self.names if n.startswith(f"{name}.")]:
            new = Params4bit.from_prequantized(
                value,
                {n.removeprefix(f"{name}."): self.read(n) for n in state},
                device=self.device,
                module=module,
            )
        else:
            packed = Params4bit(value.to(self.dtype), **vars(old))
            new = packed._quantize(self.device)
        setattr(module, attribute, new)
