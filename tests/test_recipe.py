"""recipe.json: written whole or not at all, and read back as it was."""

from __future__ import annotations

import hashlib
import os

import pytest

from colab_utils import recipe


def test_versions_of_installed_packages(monkeypatch):
    import torch

    found = recipe.versions()["torch"]  # of some builds without the `+cu130`
    assert found.partition("+")[0] == torch.__version__.partition("+")[0]
    monkeypatch.setattr(recipe, "PACKAGES", ("torch", "no-such-package"))
    assert set(recipe.versions()) == {"torch"}


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_sha256(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert recipe.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_read_returns_what_was_written(tmp_path):
    made = recipe.write(tmp_path, kind="dataset", rows={"in": 3}, note="é")
    assert recipe.read(tmp_path) == made
    assert made["rows"] == {"in": 3} and made["versions"] == recipe.versions()
    assert made["made"].endswith("+00:00")
    recipe.write(tmp_path, kind="other")
    assert recipe.read(tmp_path)["kind"] == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


def test_write_keeps_the_old_recipe_on_failure(tmp_path):
    made = recipe.write(tmp_path, kind="dataset")
    with pytest.raises(TypeError):
        recipe.write(tmp_path, kind=object())
    assert recipe.read(tmp_path) == made
