from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from colab_utils import memory
from colab_utils.memory import costs, step
from colab_utils.memory.activations import activation_bytes, workspace_bytes
from colab_utils.shape import Shape

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("weights", "scales", "adapters", "gradients", "optimizer", "checkpoints")
PARTS += ("activations", "logits", "working", "reserve")
PEAKS = json.loads((ROOT / "bench" / "results" / "peaks.json").read_text())


def test_at_loss_of_llama_2_7b(seven_b):
    config = seven_b()
    cost = memory.at_loss(config, "qlora", 16, 2048)
    adapters = memory.adapter_parameters(config, 16)
    assert cost.weights + cost.scales == pytest.approx(3.866e9, rel=0.001)
    assert cost.adapters == cost.gradients == 4 * adapters
    assert cost.optimizer == 8 * adapters
    full = memory.at_loss(config, "full", 16, 2048)
    assert full.weights + full.gradients + full.optimizer == 16 * 6_738_415_616


def test_activation_bytes_as_measured_on_a_gpu(seven_b):
    shape = Shape.from_config(seven_b())
    kept = activation_bytes(shape, "qlora", 16, size=2)
    assert kept == pytest.approx(173.6e3, rel=0.03)
    kept = activation_bytes(shape, "qlora", 16, size=2, fast=True)
    assert kept == pytest.approx(93.2e3, rel=0.03)


@pytest.mark.parametrize("row", PEAKS, ids=lambda r: f"{r['shape']}-{r['rank']}")
def test_estimate_as_measured_on_a_gpu(monkeypatch, seven_b, row):
    """bench/peaks.py, on an H100: its cuBLAS takes 64 MiB."""
    monkeypatch.setattr(costs, "CUBLAS", 64 * 2**20)
    found = memory.estimate(
        seven_b(**row["config"]),
        row["method"],
        row["rank"],
        row["tokens"],
        recompute=row["recompute"],
        offload=row["offload"],
        fast=row["fast"],
        accumulating=row["times"] > 1,
        accumulators=1,
        packed=False,
        optimizer="adamw_8bit",
    )
    assert found.peak / memory.GIB == pytest.approx(row["measured"], rel=0.03)


def test_estimate_counts_gradients_or_activations(seven_b):
    """The peak is at the loss for many tokens, at the update for few."""
    config, adapters = seven_b(), memory.adapter_parameters(seven_b(), 64)
    many, few = (memory.estimate(config, "qlora", 64, n) for n in (2048, 16))
    assert many.gradients < 0.1 * 4 * adapters and many.activations > 10e9
    assert few.gradients > 0.9 * 4 * adapters and few.activations < 0.1e9
    more = memory.estimate(config, "qlora", 64, 2048, accumulating=True)
    assert more.peak - many.peak == pytest.approx(4 * adapters, rel=0.1)


def test_estimate_with_recompute_and_offload(seven_b):
    ways = [{}, {"recompute": 16}, {"recompute": 32}]
    ways.append({"recompute": 32, "offload": 32})
    peaks = [
        memory.estimate(seven_b(), "qlora", 16, 2048, fast=True, **w) for w in ways
    ]
    assert sorted(peaks, key=lambda one: -one.peak) == peaks
    assert peaks[3].checkpoints == 0
    assert peaks[2].weights - peaks[3].weights == 2 * 32000 * 4096
    assert peaks[3].ram == 32 * 2048 * 4096 * 2 + 2 * 32000 * 4096
    assert peaks[3].total == sum(peaks[3].as_gib()[k] * memory.GIB for k in PARTS)


def test_estimate_offloads_the_first_layers_only(seven_b):
    """An input of 12,289 tokens takes a piece of 64 MiB and one of 33, rounded up."""
    way = {"recompute": 32, "fast": True}
    none, some = (
        memory.estimate(seven_b(), "qlora", 16, 12_289, offload=k, **way)
        for k in (0, 10)
    )
    saved = 10 * 2 * 12_289 * 4096
    assert none.checkpoints - some.checkpoints == saved
    assert some.ram == 10 * (64 + 64) * 2**20 + 2 * 32000 * 4096


def test_estimate_with_tiles_by_hand(seven_b):
    """131,072 tokens in four tiles; a tensor of the row's length takes 1 GiB."""
    unit = 131_072 * 4096 * 2
    way = {"fast": True, "offload": 32, "tiles": 4, "packed": False}
    found = memory.estimate(seven_b(), "qlora", 16, 131_072, **way)
    low, lse = 131_072 * 14 * 16 * 2, 131_072 * 32 * 4
    assert found.activations == 2 * unit + low + lse  # input, output of attention
    # two gradients; of a tile: q, k, v and their gradients, the output of attention and
    # its gradient, and three float32 sums of the size of q
    tile = (3 + 3 + 1 + 1 + 2 * 3) * unit / 4
    buffer = 2 * 4096 * 2 * 11_008
    assert found.working == 2 * unit + tile + costs.CUBLAS + buffer
    assert found.checkpoints == 0


def test_estimate_with_tiles_checkpoints_every_layer(seven_b):
    one = memory.estimate(seven_b(), "qlora", 16, 65_536, fast=True, recompute=32)
    totals = [one.total]
    for tiles in (2, 4, 8):
        found = memory.estimate(seven_b(), "qlora", 16, 65_536, fast=True, tiles=tiles)
        assert found.checkpoints == one.checkpoints
        totals.append(found.total)
    assert totals == sorted(totals, reverse=True)


def test_estimate_with_inputs_on_disk(seven_b):
    way = {"fast": True, "recompute": 32, "offload": 20}
    ram, disk = (
        memory.estimate(seven_b(), "qlora", 16, 4096, **way, disk=k) for k in (0, 12)
    )
    assert disk.disk == ram.ram - disk.ram == 12 * 4096 * 4096 * 2
    assert ram.total == disk.total and set(disk.as_gib()) == {*PARTS, "total"}
    more = memory.estimate(seven_b(), "qlora", 16, 4096, **way, disk=99)
    assert more.disk == 20 * 4096 * 4096 * 2


@pytest.mark.parametrize(
    ("tokens", "padded"), [(512, 3072), (4096, 12_288), (16_384, 16_384)]
)
def test_workspace_is_of_the_padded_tokens(seven_b, tokens, padded):
    shape = Shape.from_config(seven_b())
    assert workspace_bytes(shape, tokens, 3) == 3 * 4 * 4096 * padded
    assert workspace_bytes(shape, tokens, 3, packed=False) == 3 * 4 * 4096 * tokens


def test_at_loss_with_more_tokens_has_more_activations_only(seven_b):
    one, two = (memory.at_loss(seven_b(), "qlora", 16, n) for n in (1024, 2048))
    constant = 2 * memory.adapter_parameters(seven_b(), 16)
    assert two.activations - constant == 2 * (one.activations - constant)
    assert (two.weights, two.gradients) == (one.weights, one.gradients)


def test_estimate_with_the_8_bit_optimizer(seven_b):
    small, large = (
        memory.estimate(seven_b(), "qlora", 16, 1, optimizer=name).optimizer
        for name in ("adamw_8bit", "adamw_torch")
    )
    assert small == pytest.approx(large / 4, rel=0.02)


def test_step_clamps_recompute_and_has_no_fast_path_for_full(seven_b):
    shape = Shape.from_config(seven_b())
    assert step.Step(shape, "lora", 8, 16, recompute=99).recompute == 32
    assert step.Step(shape, "lora", 8, 16, recompute=-1).recompute == 0
    assert step.Step(shape, "lora", 8, 16, fast=True).fast
    assert not step.Step(shape, "full", 8, 16, fast=True).fast


def test_step_moments(seven_b):
    """The loss, the backward pass of each layer, the update."""
    one = step.Step(Shape.from_config(seven_b()), "lora", 8, 16)
    moments = one.moments()
    assert len(moments) == 1 + 32 + 1
    assert moments[0] == one.loss() and moments[-1] == one.update()
    assert moments[1] == one.layer(31)
    assert one.peak().total == max(moment.total for moment in moments)


def test_estimate_with_embeddings_and_head(seven_b):
    """PEFT keeps the frozen matrices, and trains copies of both in float32."""
    config, words = seven_b(), 2 * 32000 * 4096
    alone = memory.at_loss(config, "qlora", 16, 1024)
    both = memory.at_loss(config, "qlora", 16, 1024, embeddings=True, fast=True)
    for part, size in (("adapters", 4), ("gradients", 4), ("optimizer", 8)):
        assert getattr(both, part) - getattr(alone, part) == size * words
    assert both.weights == alone.weights
    budget = 14.26 * memory.GIB
    given = {"longest": 1024, "update": 8192, "budget": budget, "embeddings": True}
    plan = memory.plan(config, "qlora", 16, **given)
    assert not plan.fast
    # More tokens at once, or fewer checkpointed layers, ran out of a T4's memory.
    assert (plan.tokens, plan.accumulation, plan.recompute) == (1024, 8, 32)


def test_estimate_with_shards(seven_b):
    """Each GPU has half of the packed weights, and two whole layers in the buffers."""
    shape = Shape.from_config(seven_b())
    options = {"fast": True, "recompute": 32}
    whole = memory.estimate(shape, "qlora", 16, 512, **options)
    half = memory.estimate(shape, "qlora", 16, 512, shards=2, **options)
    linear, _ = costs.parameters(shape)
    assert whole.weights - half.weights == linear / 4
    assert whole.scales - half.scales == linear / 128
    layer = linear / 32 * (1 / 2 + 1 / 64)
    assert half.working - whole.working == pytest.approx(2 * layer)
    assert half.activations == whole.activations
    assert half.adapters == whole.adapters and half.optimizer == whole.optimizer


@pytest.mark.parametrize(("method", "fast"), [("lora", True), ("qlora", False)])
def test_estimate_refuses_shards_of_other_weights(seven_b, method, fast):
    with pytest.raises(ValueError, match="shards = 2, but only QLoRA on the fast path"):
        memory.estimate(seven_b(), method, 16, 512, fast=fast, shards=2)


def test_plan_refuses_shards_of_an_unknown_family(seven_b):
    shape = replace(Shape.from_config(seven_b()), family="mixtral")
    sizes = {"longest": 512, "update": 512, "budget": 14 * memory.GIB, "shards": 2}
    with pytest.raises(ValueError, match="a MODEL of the families llama, mistral"):
        memory.plan(shape, "qlora", 16, **sizes)
