"""Write a merged model as a classifier that transformers' pipeline loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.weights.shards import find_shards, read_header
from colab_utils.weights.stops import change_json

if TYPE_CHECKING:
    import torch

WEIGHT = "score.weight"  # as transformers names it
LM_HEAD = "lm_head.weight"


def write_classifier(
    folder: Path, head: torch.Tensor, names: Sequence[str], pad: int | None
) -> Path:
    """Turn the merged model in `folder` into a classifier; return the folder.

    `head` is the weight (classes, width), `names` the classes' labels, and `pad` the id
    of the pad token. The head gets a file of its own, and config.json names the class
    `...ForSequenceClassification`; the other weight files keep their bytes. Called
    again it replaces the head. Raises ValueError if the number of names or the width is
    wrong, or if transformers has no such class for the family.
    """
    from safetensors.torch import save_file
    from transformers.models.auto import modeling_auto

    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = (len(names), config["hidden_size"])
    if tuple(head.shape) != shape:
        raise ValueError(
            f"The head's weight is {tuple(head.shape)}, but {len(names)} labels and "
            f"the model's width need {shape}: use the head that was trained with them."
        )
    family = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if (kind := config["model_type"]) not in family:
        raise ValueError(
            f"transformers has no classifier for the family {kind}: use the adapter "
            "and its head instead."
        )
    shards = [file for file in find_shards(folder) if file.name != "score.safetensors"]
    save_file(
        {WEIGHT: head.detach().cpu().contiguous()},
        folder / "score.safetensors",
        {"format": "pt"},
    )
    if shards[0].name == "model.safetensors":  # transformers would read only this one
        shards = [shards[0].rename(folder / "model-00001-of-00001.safetensors")]
    places = {name: file.name for file in shards for name in read_header(file)[0]}
    places.pop(LM_HEAD, None)  # a classifier does not read it
    index = {"metadata": {}, "weight_map": places | {WEIGHT: "score.safetensors"}}
    text = json.dumps(index, indent=2)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    change_json(
        folder / "config.json",
        architectures=[family[kind]],
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
        pad_token_id=pad,
        problem_type="single_label_classification",
    )
    return folder
