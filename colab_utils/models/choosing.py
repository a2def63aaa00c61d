"""Choose the base model, and check before its download whether it can be trained."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from colab_utils import families, hub, parameters, runtime
from colab_utils.memory import costs
from colab_utils.models.loading import load_config
from colab_utils.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

OFFICIAL = "meta-llama/Llama-2-7b-hf"  # needs a token and an accepted license
OPEN_MIRROR = "NousResearch/Llama-2-7b-hf"  # the same weights, no token

# A config with one of these fields has several MLPs in a layer.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def resolve_model(name: str | None = "auto", train: bool = False) -> str:
    """Return the base model that `name` stands for: "demo", a Hub id or a folder.

    "auto" is Llama 2 7B on a GPU, and on Colab and Kaggle, which have free GPUs. On
    other machines it is "demo". Llama 2 comes from the official repository if the token
    has access, else from its open mirror. The choice is printed.

    Raises the errors of `load_config`, ValueError for a model that the course can't
    train, and with `train` RuntimeError if "auto" needs a GPU that is not there.
    """
    name = _automatic(train) if parameters.is_auto(name) else parameters.clean(name)
    check_model(load_config(name), name)
    return name


def _automatic(train: bool) -> str:
    """Return the model for this machine and token; print the reason."""
    gpu, place = runtime.detect().device == "cuda", runtime.place()
    if not gpu and place not in runtime.GPU_SWITCH:
        print("model: the demo model (3 M parameters), because there is no GPU")
        return "demo"
    if not gpu and train:
        raise RuntimeError(
            f'MODEL = "auto" is Llama 2 7B on {place}, which needs a GPU, and this '
            f"machine has none: choose {runtime.GPU_SWITCH[place]}, then run again "
            'from the top. To train on this CPU, set MODEL = "demo" here and in '
            "01_create_dataset, and run both."
        )
    reason = "there is a GPU" if gpu else f"{place} has a GPU for the next notebook"
    token = hub.token()
    if token and hub.can_read(OFFICIAL, token):
        print(f"model: {OFFICIAL}, because {reason} and your token has access")
        return OFFICIAL
    print(f"model: {OPEN_MIRROR}, the open mirror of Llama 2 7B, because {reason}")
    return OPEN_MIRROR


def check_model(config: PreTrainedConfig, name: str) -> None:
    """Raise ValueError for a model that the course can't train; print what differs.

    A family of the course passes at once. Any other model is built from its config
    without weights: it passes if its linear layers are those of a Llama, because the
    memory plan and the adapters are computed from them.
    """
    kind = config.model_type
    if kind in families.FAMILIES:
        return
    if problem := _problem(config):
        raise ValueError(
            f"{name} is a {kind} model, and {problem}. The course trains the families "
            f"{', '.join(families.FAMILIES)}, and others with the same linear layers: "
            "choose another MODEL."
        )
    print(
        f"{kind}: trains without the fast path. Its weights, adapter and optimizer are "
        "planned exactly, its activations as a Llama's would be"
    )
    if kind in families.OVERFLOWS and runtime.detect().dtype == "float16":
        print(
            f"{kind}: its activations are known to exceed float16, which ends in NaN "
            "on this GPU. Choose another MODEL, or a GPU with bfloat16"
        )


def _problem(config: PreTrainedConfig) -> str | None:
    """Return why a model of another family can't be trained, or None."""
    import torch
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder:
        return "it has an encoder"
    if config.get_text_config() is not config:
        return "it reads more than text: only models for text are trained here"
    if any(getattr(config, name, None) for name in EXPERTS):
        return "it is a mixture of experts"
    try:
        shape = Shape.from_config(config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, AttributeError, RuntimeError):  # RuntimeError: sizes vary
        return "its layers are not a Llama's"
    counts = costs.parameters(shape)
    total = sum(p.numel() for p in model.parameters())
    found, expected = _linears(model), Counter[str]()
    for layer, (inputs, outputs) in shape.linear_shapes().items():
        expected[f"{layer} {inputs} x {outputs}"] = shape.layers
    if found != expected or abs(total / sum(counts) - 1) > 0.01:
        names = {key.partition(" ")[0] for key in found - expected}
        more = f" (it has {', '.join(sorted(names))})" if names else ""
        return f"not all of its {total:,} parameters are where a Llama has them{more}"
    return None


def _linears(model: PreTrainedModel) -> Counter[str]:
    """Return the linear layers of all decoder layers: name and size, and how many."""
    import torch

    return Counter(
        f"{name.rpartition('.')[2]} {module.in_features} x {module.out_features}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    )
