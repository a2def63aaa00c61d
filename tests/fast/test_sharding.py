"""Two processes with half of each layer compute what one computes with whole layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.families import small_model
from helpers.gloo import in_processes
from helpers.llamas import gradients, packed, padded, with_lora
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from colab_utils import memory, models
from colab_utils.fast import lora, ops, patch, sharding, support
from colab_utils.fast.sharding import Shards

# Checkpointed layers, inputs in RAM, tiles.
SETTINGS = {"plain": (0, 0), "recompute": (6, 0), "some": (3, 0), "offload": (4, 2)}
SETTINGS |= {"tiles": (6, 2, 2)}


def adapted(model) -> torch.nn.Module:
    return with_lora(model, target_modules="all-linear")


def batches() -> list[dict[str, torch.Tensor]]:
    rows = padded([11, 30, 24], vocabulary=1024)
    return [rows, packed(padded([9, 4], vocabulary=1024))]


def difference(found, expected) -> float:
    """Return the largest relative difference of the loss and of the gradients."""
    assert found[1].keys() == expected[1].keys()
    errors = [(found[1][n] - g).norm() / g.norm() for n, g in expected[1].items()]
    return max(*errors, (found[0] - expected[0]).abs() / expected[0]).item()


def layers_of(model) -> list[list[torch.Tensor]]:
    """Return copies of the packed weights and scales; gather them if needed."""
    inner, found = lora.llama(model), []
    shards = Shards.of(inner)
    for i, module in enumerate(lora.decoder_layers(inner)):
        if shards:
            shards.use(i, 1)
        linears = lora.linears(module, lora.LINEARS)
        weights = [lora.base_of(linear).weight for linear in linears]
        states = [getattr(weight, "quant_state", None) for weight in weights]
        parts = [weight.data for weight in weights]
        parts += [state.absmax for state in states if state]
        parts += [state.state2.absmax for state in states if state]
        found.append([part.clone() for part in parts])
    return found


def same(a: list[list[torch.Tensor]], b: list[list[torch.Tensor]]) -> bool:
    pairs = [pair for x, y in zip(a, b, strict=True) for pair in zip(x, y, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


def measure_shards() -> dict[str, Any]:
    """Return what a process finds out about the demo model."""
    found: dict[str, Any] = {}
    model = adapted(models.load_model("demo", models.quantization_config()))
    inner = lora.llama(model)
    patch.apply(model)
    expected = [gradients(model, batch) for batch in batches()]
    whole = layers_of(model)
    sharding.shard(model)
    shards = Shards.of(inner)
    found["own"] = sum(len(layer.own) for layer in shards.layers)
    found["whole"] = sum(p.nbytes for parts in whole for p in parts[:14])
    found["left"] = sum(p.numel() for parts in pieces_of(shards) for p in parts)
    for name, setting in SETTINGS.items():
        patch.apply(model, *setting)
        pairs = zip(batches(), expected, strict=True)
        found[name] = [difference(gradients(model, b), e) for b, e in pairs]
    before = shards.received
    gradients(model, batches()[0])
    found["received"] = shards.received - before
    found["held"] = [any(p.numel() for p in parts) for parts in pieces_of(shards)]
    found["same"] = same(layers_of(model), whole)
    rank, mean = dist.get_rank(), [mean_of(expected, i) for i in range(2)]
    parallel = DistributedDataParallel(model)
    found["parallel"] = 0.0
    for _ in range(2):
        model.zero_grad()
        parallel(**batches()[rank]).loss.backward()
        named = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
        grads = {n: p.grad for n, p in named}
        error = difference((mean[0], grads), (mean[0], mean[1]))
        found["parallel"] = max(error, found["parallel"])
    found["parallel same"] = same(layers_of(model), whole)
    for module in inner.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = module.weight.to("cpu")  # a new object
    found["moved"] = [difference(gradients(model, batches()[0]), expected[0])]
    empty = lora.base_of(lora.linears(inner.model.layers[4], ["o_proj"])[0]).weight
    found["decoding"] = support.decoding_problem(model)
    for name, forward in {
        "evaluating": lambda: model.eval()(**batches()[0]),
        "removed": lambda: patch.remove(model) or model.train()(**batches()[0]),
        "twice": lambda: sharding.shard(model),
        "empty": lambda: ops.dequantize(empty, torch.empty(192, 192)),
    }.items():
        try:
            forward()
        except RuntimeError as error:
            found[name] = str(error)
    return found


def pieces_of(shards: Shards) -> list[list[torch.Tensor]]:
    return [[piece.tensor for piece in layer.pieces] for layer in shards.layers]


def mean_of(expected, i: int):
    """Return the mean loss, or the mean gradients, of two results of `gradients`."""
    a, b = (one[i] for one in expected)
    return (a + b) / 2 if i == 0 else {n: (g + b[n]) / 2 for n, g in a.items()}


def measure_loading(folders: dict[str, str], lacking: Path) -> dict[str, Any]:
    """Return for each model whether it is loaded as `load_model` loads it."""
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        quantization = models.quantization_config()
        whole = models.load_model(folder, quantization)
        loaded = models.load_sharded(folder, quantization)
        shards = Shards.of(lora.llama(loaded))
        row = {"same": same(layers_of(loaded), layers_of(whole))}
        row["own"] = sum(len(layer.own) for layer in shards.layers)
        row["config"] = repr(whole.config) == repr(loaded.config)
        pairs = [dict(m.named_parameters()) for m in (whole, loaded)]
        row["names"] = list(pairs[0]) == list(pairs[1])
        kept = [n for n in pairs[0] if not n.endswith("_proj.weight")]
        others = [(pairs[0][n], pairs[1][n]) for n in kept]
        row["others"] = all(torch.equal(a, b) for a, b in others)
        row["dtypes"] = all(a.dtype == b.dtype for a, b in others)
        row["modes"] = whole.training == loaded.training
        row["compute dtypes"] = compute_dtypes(whole) == compute_dtypes(loaded)
        whole, loaded = adapted(whole), adapted(loaded)
        batch = padded([20, 7], lora.llama(whole).config.vocab_size)
        row["fast"] = patch.apply(whole) and patch.apply(loaded, recompute=1)
        expected = gradients(whole, batch)
        row["difference"] = difference(gradients(loaded, batch), expected)
        found[name] = row
    try:
        models.load_sharded(str(lacking), models.quantization_config())
    except ValueError as error:
        found["lacking"] = str(error)
    return found


def compute_dtypes(model) -> set[torch.dtype]:
    return {m.compute_dtype for m in model.modules() if hasattr(m, "compute_dtype")}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    return in_processes(tmp_path_factory.mktemp("shards"), measure_shards)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [*SETTINGS, "moved"])
def test_use_gradients_equal_those_of_whole_layers(found, setting):
    for process in found:
        assert max(process[setting]) < 1e-5


@pytest.mark.slow
def test_shard_keeps_half_of_the_bytes_in_each_process(found):
    for process in found:
        assert process["own"] == process["whole"] / 2
        assert process["left"] == 0
        assert process["held"] == [True, True, False, False, False, False]
        assert process["same"]


@pytest.mark.slow
def test_use_receives_what_the_plan_says(found):
    config = models.load_config("demo")
    for process in found:
        assert process["received"] == memory.gathered_bytes(config, shards=2)


@pytest.mark.slow
def test_shard_under_data_parallel(found):
    """DDP averages the gradients of two batches, and leaves the shards as they are."""
    for process in found:
        assert process["parallel"] < 1e-5
        assert process["parallel same"]


@pytest.mark.slow
def test_shard_refuses_other_forward_passes(found):
    for process in found:
        assert "sharded" in process["decoding"]
        for name in ("evaluating", "removed"):
            assert "only the fast path of training gathers them" in process[name]
        assert "sharded already" in process["twice"]
        assert "its layer was not gathered" in process["empty"]


def test_shard_without_a_process_group(model):
    with pytest.raises(RuntimeError, match="one process for each GPU"):
        sharding.shard(model)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tokenizer) -> list[dict[str, Any]]:
    """Load the demo, a quantized folder, and one with biases and a tied head.

    The quantized folder has one linear layer in 16 bits.
    """
    folder = tmp_path_factory.mktemp("models")
    settings = models.quantization_config()
    settings.llm_int8_skip_modules = ["lm_head", "model.layers.1.mlp.down_proj"]
    models.load_model("demo", settings).save_pretrained(folder / "quantized")
    small_model("qwen2", torch.float16).save_pretrained(folder / "qwen")
    names = {name: str(folder / name) for name in ("quantized", "qwen")}
    names["demo"] = "demo"
    lacking = folder / "lacking"
    shutil.copytree(folder / "qwen", lacking)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    return in_processes(
        tmp_path_factory.mktemp("loading"), measure_loading, names, lacking
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "quantized", "qwen"])
def test_load_sharded_equals_load_model(loaded, name):
    for process in loaded:
        row = process[name]
        assert row.pop("difference") < 1e-5
        assert row.pop("own") > 0
        assert row and all(row.values()), row


@pytest.mark.slow
def test_load_sharded_without_a_tensor(loaded):
    for process in loaded:
        assert "lacks 1 tensors" in process["lacking"]
        assert "model.layers.2.mlp.up_proj.weight" in process["lacking"]
