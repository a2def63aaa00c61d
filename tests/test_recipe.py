"""recipe.json: written whole or not at all, and read back as it was."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert recipe.read(str(tmp_path))["kind"] == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


def test_write_keeps_the_old_recipe_on_failure(tmp_path):
    made = recipe.write(tmp_path, kind="dataset")
    with pytest.raises(TypeError):
        recipe.write(tmp_path, kind=object())
    assert recipe.read(tmp_path) == made


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = st.dictionaries(st.sampled_from([*recipe.KINDS, "note"]), JSON)


@given(st.binary() | (JSON | FIELDS).map(lambda one: json.dumps(one).encode()))
def test_read_refuses_what_is_no_recipe_in_a_sentence(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "recipe.json").write_bytes(content)
    try:
        found = recipe.read(folder)
    except ValueError as error:
        assert str(error).endswith(recipe.REMAKE)
        return
    for name, kind in recipe.KINDS.items():
        assert found.get(name) is None or isinstance(found[name], kind)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not valid JSON"),
        ('{"kind": "adapter", "na', "is not valid JSON"),
        ("[]", "holds no fields"),
        ('{"base_model": 3}', "has base_model = 3, which is not a text"),
        ('{"rows": [1]}', r"has rows = \[1\], which is not an object with fields"),
    ],
)
def test_read_says_what_is_wrong(tmp_path, content, sentence):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(ValueError, match=f"recipe.json {sentence}.*Run the notebook"):
        recipe.read(tmp_path)


def test_recipe_without_a_field_says_so(tmp_path):
    (tmp_path / "recipe.json").write_text('{"kind": "adapter"}')
    made = recipe.read(tmp_path)
    assert made["kind"] == "adapter" and made.get("method") is None
    with pytest.raises(ValueError, match=r"recipe\.json has no 'method'\. Run the"):
        _ = made["method"]
