"""A layer in tiles computes what the whole layer computes, in less memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from helpers.families import CONFIGS, small_model
from helpers.llamas import LORAS, gradients, packed, padded, small_llama, with_lora
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from colab_utils import models
from colab_utils.fast import autograd, documents, kept_inputs, patch, tiled_layer


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Let the MLP take 7 tokens at a time: the last tile of a test is smaller."""
    monkeypatch.setattr(tiled_layer, "TILE_ROWS", 7)


def assert_same(model, batch, tiles: int, **whole) -> None:
    patch.apply(model, **whole)
    loss, expected = gradients(model, batch)
    assert patch.apply(model, tiles=tiles, offload=whole.get("offload", 0))
    found_loss, found = gradients(model, batch)
    assert found_loss == pytest.approx(loss.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        error = (found[name] - grad).norm() / grad.norm()
        assert grad.norm() > 0 and error < 1e-10, (name, error)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [2, 4])
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_tiles_give_the_gradients_of_a_whole_layer(lora, tiles):
    model = with_lora(small_llama(), **lora)
    assert_same(model, padded([11, 7, 2, 16]), tiles)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_tiles_in_every_family(family):
    """Grouped heads, biases, norms of the heads, layers without rotation."""
    model = with_lora(small_model(family), target_modules="all-linear")
    assert_same(model, padded([11, 7, 2, 16]), tiles=2)


def test_tiles_with_inputs_in_ram():
    model = with_lora(small_llama(), target_modules="all-linear")
    assert_same(model, packed(padded([30, 9])), 4, recompute=3, offload=2)


def test_inputs_on_disk(monkeypatch):
    """Also in several pieces, in RAM and on disk, with tiles and without."""
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = packed(padded([30, 9]))
    patch.apply(model)
    loss, expected = gradients(model, batch)
    monkeypatch.setattr("colab_utils.memory.costs.PIECE", 16 * 96 * 8)
    files: list[kept_inputs.OnDisk] = []

    def on_disk(x):
        files.append(kept_inputs.OnDisk(x))
        return files[-1]

    monkeypatch.setattr(autograd, "OnDisk", on_disk)
    for tiles in (1, 2):
        files.clear()
        assert patch.apply(model, recompute=3, offload=3, tiles=tiles, disk=2)
        found_loss, found = gradients(model, batch)
        assert [one.file.closed for one in files] == [True, True]
        assert found_loss == pytest.approx(loss.item(), rel=1e-12)
        for name, grad in expected.items():
            assert (found[name] - grad).norm() < 1e-10 * grad.norm(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensor_on_disk_comes_back(dtype):
    x = torch.randn(50, 6).to(dtype)
    file = kept_inputs.OnDisk(x[:, ::2])
    assert torch.equal(file.read(x.device), x[:, ::2])
    assert file.file.closed


def test_full_disk_names_the_folder(monkeypatch):
    """/dev/full is a file that is always full."""
    monkeypatch.setattr(
        kept_inputs.tempfile,
        "TemporaryFile",
        lambda: Path("/dev/full").open("wb"),  # noqa: SIM115
    )
    message = r"input of a layer \(0\.00 GiB\) can't be written to .*: No space left"
    with pytest.raises(OSError, match=message):
        kept_inputs.OnDisk(torch.ones(4, 4))


def test_tiles_need_less_memory(monkeypatch):
    """The peak without inputs and gradients of adapters, in tensors (T, width)."""
    monkeypatch.setattr(tiled_layer, "TILE_ROWS", 64)
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 256}
    sizes |= {"intermediate_size": 688, "num_hidden_layers": 1}
    model = with_lora(small_llama(torch.float32, **sizes), target_modules="all-linear")
    batch, peaks = packed(padded([512])), []
    for tiles in (1, 2, 4, 8):
        patch.apply(model, recompute=1, tiles=tiles)
        gradients(model, batch)
        with Live() as live:
            gradients(model, batch)
        peaks.append((live.peak - live.now) / (512 * 256 * 4))
    assert peaks[3] < 0.7 * peaks[1] < 0.7 * 0.7 * peaks[0], peaks
    # One tensor more would be one that is not freed before attention runs backward.
    assert peaks[1] < 10.9, peaks
    assert peaks[2] < 7.4, peaks


def test_tiles_with_groups_of_documents(monkeypatch):
    model = with_lora(small_llama(), target_modules="all-linear")
    flatten = documents.flatten
    monkeypatch.setattr(patch, "flatten", lambda *given: flatten(*given, limit=1))
    assert_same(model, packed(padded([5, 40, 3, 1, 38, 9])), 4)


@pytest.mark.slow
def test_tiles_of_quantized_weights():
    model = models.load_model("demo", models.quantization_config())
    model = with_lora(model, target_modules="all-linear")
    batch = padded([40, 13], vocabulary=1024)
    patch.apply(model)
    loss, expected = gradients(model, batch)
    patch.apply(model, tiles=2)
    found_loss, found = gradients(model, batch)
    assert found_loss == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in expected.items():
        assert (found[name] - grad).norm() < 1e-4 * grad.norm(), name


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that exist, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, object] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return found

    def count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.finalize(storage, self.forget, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def forget(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size
