"""A model is recognized by its weights, not by its name."""

from __future__ import annotations

import json
import shutil

import torch
from helpers.checkpoints import make_base, tensors_of
from safetensors.torch import save_file

from colab_utils import models


def test_fingerprint_is_that_of_the_weights(tmp_path):
    base = make_base(tmp_path / "one")
    mirror = make_base(tmp_path / "two", shard="500KB")
    assert len(list(mirror.glob("*.safetensors"))) > 1
    config = json.loads((mirror / "config.json").read_text())
    (mirror / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    found = models.fingerprint(str(base))
    assert len(found) == 64 and models.fingerprint(str(mirror)) == found


def test_fingerprint_of_other_weights_differs(tmp_path):
    base = make_base(tmp_path / "one")
    found = {models.fingerprint(str(base))}
    for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        other = tmp_path / name
        shutil.copytree(base, other)
        tensors = tensors_of(base)
        tensors[name] = tensors[name] * 1.01
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        found.add(models.fingerprint(str(other)))
    for rope in (1e6, 5e5):
        parameters = {"rope_theta": rope, "rope_type": "default"}
        other = make_base(tmp_path / str(rope), rope_parameters=parameters)
        found.add(models.fingerprint(str(other)))
    found.add(models.fingerprint(str(make_base(tmp_path / "b", torch.bfloat16))))
    assert len(found) == 6


def test_fingerprint_without_safetensors_is_the_name(tmp_path, capsys):
    base = make_base(tmp_path / "one")
    (base / "model.safetensors").unlink()
    assert models.fingerprint(str(base)) == str(base)
    assert "has no safetensors files" in capsys.readouterr().out
