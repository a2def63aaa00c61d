from __future__ import annotations

import pytest

from colab_utils import demo, hub, models


def test_load_and_download_of_a_missing_model():
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.load_model("no/such/folder")
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.load_tokenizer("no/such/folder")
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.download("no/such/folder")


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_download_asks_for_the_needed_files(monkeypatch, tmp_path, stored):
    """A folder stands in for the Hub; the test checks which files are asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    texts = {"config.json", "tokenizer.model", "tokenizer_config.json", "merges.txt"}
    texts |= {"chat_template.jinja", "LICENSE.txt", "USE_POLICY.md"}
    other = {"notes.md", "pytorch_model.bin", "model.safetensors"} - {stored}

    def download(name: str, allow_patterns: list[str], token: str | None) -> str:
        there = texts | other | {stored}
        if stored == "pytorch_model.bin":
            there -= {"model.safetensors"}
        for file in filter_repo_objects(there, allow_patterns=allow_patterns):
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "token", lambda: None)
    if stored == "model.safetensors":
        assert models.download("someone/model") == tmp_path
    else:
        with pytest.raises(
            FileNotFoundError, match=r"download\('someone/model', '\*.bin"
        ):
            models.download("someone/model")
        assert models.download("someone/model", "*.bin") == tmp_path
    assert {file.name for file in tmp_path.iterdir()} == texts | {stored}


def test_load_tokenizer_of_a_folder_needs_no_token(monkeypatch):
    def asked() -> str:
        raise AssertionError("the token was looked up")

    monkeypatch.setattr(hub, "token", asked)
    models.load_tokenizer("demo")


def test_load_config(model, tmp_path):
    assert models.load_config("demo").hidden_size == model.config.hidden_size
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        models.load_config(str(tmp_path))


def test_load_model_from_a_folder_without_weights(tmp_path):
    config = (demo.MODEL / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(OSError, match=str(tmp_path)):
        models.load_model(str(tmp_path))
