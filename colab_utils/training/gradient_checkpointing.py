"""Gradient checkpointing on the reference path: transformers' own, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer


def checkpointable(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """Return the decoder layers, which transformers can checkpoint one by one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def checkpoint_first(model: PreTrainedModel, count: int) -> None:
    """Use gradient checkpointing for the first `count` layers, and for no other."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for i, layer in enumerate(checkpointable(model)):
        layer.gradient_checkpointing = i < count
