"""The largest activation of a model, which must stay below float16's largest number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from colab_utils.training.gradient_checkpointing import checkpointable
from colab_utils.training.trainer import model_of

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    Outputs = torch.Tensor | tuple[torch.Tensor, ...]

OTHER_MODEL = "Set MODEL to another model, or use a GPU with bfloat16 (L4, A100)."


@contextmanager
def activation_range(trainer: Trainer) -> Iterator[None]:
    """Print the largest activation of the forward passes in this block.

    The outputs of the decoder layers are measured, on the reference path. Raises
    FloatingPointError for a value that is infinite or NaN. A value above half of
    float16's largest number, 65,504, prints a warning if the model computes in float16.
    """
    import torch

    layers = checkpointable(model_of(trainer))
    found: dict[int, torch.Tensor] = {}
    dtypes: set[torch.dtype] = set()

    def measure(
        number: int, layer: torch.nn.Module, inputs: object, outputs: Outputs
    ) -> None:
        hidden = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        largest = hidden.detach().abs().amax().float()  # NaN if one value is NaN
        found[number] = torch.maximum(found.get(number, largest), largest)
        dtypes.add(hidden.dtype)

    hooks = [
        layer.register_forward_hook(partial(measure, number))
        for number, layer in enumerate(layers, 1)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        print("largest activation: not measured, because no layer was called")
        return
    values = {number: value.item() for number, value in found.items()}
    _report(values, len(layers), torch.float16 in dtypes)


def _report(values: dict[int, float], layers: int, float16: bool) -> None:
    """Print the largest value; raise an error for the first that is not finite."""
    for number, value in values.items():
        if math.isfinite(value):
            continue
        where = f"The activations after layer {number} of {layers} are {value}"
        if float16:
            raise FloatingPointError(
                f"{where}: they are too large for float16, which ends at 65,504. "
                f"{OTHER_MODEL}"
            )
        raise FloatingPointError(
            f"{where}, so the weights are damaged. Delete the model's files and "
            "download them again."
        )
    number = max(values, key=lambda number: values[number])
    print(
        f"largest activation: {values[number]:,.2f}, after layer {number} of {layers}"
    )
    if float16 and values[number] > 65504 / 2:
        print(
            "warning: this is more than half of float16's largest number, 65,504. If "
            f"the loss becomes NaN: {OTHER_MODEL[0].lower()}{OTHER_MODEL[1:]}"
        )
