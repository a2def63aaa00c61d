"""Write a merged model as a classifier that transformers' pipeline loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import recipe
from colab_utils.weights.adapters import HEAD
from colab_utils.weights.shards import find_shards, read_header
from colab_utils.weights.stops import change_json

if TYPE_CHECKING:
    import torch

WEIGHT = "score.weight"  # as transformers names it


def write_classifier(
    folder: Path, head: torch.Tensor, names: Sequence[str], pad: int | None
) -> Path:
    """Turn the merged model in `folder` into a classifier; return the folder.

    `head` is the weight (classes, width), `names` the classes' labels, and `pad` the id
    of the pad token. The head gets a file of its own, and config.json names the class
    `...ForSequenceClassification`; the other weight files keep their bytes. Called
    again it replaces the head, also after a call that was killed. Raises ValueError if
    the names or the width are wrong, or if transformers has no such class for the
    family.
    """
    from safetensors.torch import save_file
    from transformers.models.auto import modeling_auto

    config = json.loads((folder / "config.json").read_text("utf-8"))
    if "hidden_size" not in config:
        raise ValueError(
            f"{folder / 'config.json'} has no hidden_size, so it is not that of a text "
            "model: use the adapter and its head instead."
        )
    if len(set(names)) < max(2, len(names)):
        raise ValueError(
            f"{len(names)} labels have {len(set(names))} different names, but a "
            "classifier needs two or more, each with a name of its own: rename them."
        )
    shape = (len(names), config["hidden_size"])
    if tuple(head.shape) != shape:
        raise ValueError(
            f"The head's weight is {tuple(head.shape)}, but {len(names)} labels and "
            f"the model's width need {shape}: use the head that was trained with them."
        )
    family = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if (kind := config.get("model_type")) not in family:
        raise ValueError(
            f"transformers has no classifier for the family {kind}: use the adapter "
            "and its head instead."
        )
    shards = [file for file in find_shards(folder) if file.name != "score.safetensors"]
    if not shards:
        raise ValueError(
            f"{folder} has no weights but score.safetensors, which the head would "
            "replace: merge the adapter again."
        )
    save_file(
        {WEIGHT: head.detach().cpu().contiguous()},
        folder / "score.safetensors",
        {"format": "pt"},
    )
    single, renamed = "model.safetensors", "model-00001-of-00001.safetensors"
    places = {
        name: renamed if file.name == single else file.name
        for file in shards
        for name in read_header(file)[0]
    }
    places.pop(HEAD, None)  # a classifier does not read it
    index = {"metadata": {}, "weight_map": places | {WEIGHT: "score.safetensors"}}
    recipe.write_json(folder / "model.safetensors.index.json", index)
    if (folder / single).exists():  # transformers would read only this one
        (folder / single).rename(folder / renamed)
    change_json(
        folder / "config.json",
        architectures=[family[kind]],
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
        pad_token_id=pad,
        problem_type="single_label_classification",
    )
    return folder
