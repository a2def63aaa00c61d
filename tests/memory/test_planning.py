from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from colab_utils import models
from colab_utils.memory import costs
from colab_utils.memory import planning as memory
from colab_utils.training import measuring
from colab_utils.training import trainer as training

ROOT = Path(__file__).resolve().parents[2]
RANK = 8  # of the trainers that conftest makes


def seven_b(**changes):
    """The config of Llama 2 7B."""
    usual = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    return AutoConfig.for_model("llama", **usual | changes)


def batch_of(rows: int, tokens: int, padded: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random tokens; the first ends with `padded` tokens of padding."""
    ids = torch.randint(3, 1024, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens - padded :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def assert_close(found: memory.Memory, measured: memory.Memory) -> None:
    """5 % in total, 10 % in each part; what autograd holds is measured as one."""
    assert found.total == pytest.approx(measured.total, rel=0.05)
    kept = ("checkpoints", "activations", "logits")
    autograd = sum(getattr(found, name) for name in kept)
    assert autograd == pytest.approx(measured.activations, rel=0.1)
    for name in ("weights", "constants", "adapters", "gradients", "optimizer"):
        value = getattr(measured, name)
        # the tables of codes weigh something beside so small a model's constants
        rel = 0.1 if name != "constants" else 0.6
        assert getattr(found, name) == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("method", memory.METHODS)
@pytest.mark.parametrize("shape", [(4, 48, 6), (2, 256)])
def test_the_estimate_is_what_training_holds(trained, method, shape):
    trainer, _ = trained[method]
    measured = measuring.held(trainer, batch_of(*shape))
    config, tokens = trainer.model.config, shape[0] * shape[1]
    assert_close(memory.at_loss(config, method, RANK, tokens, gpu=False), measured)


@pytest.mark.parametrize("method", ["qlora", "full"])
@pytest.mark.parametrize("recompute", [2, 6])
def test_the_estimate_of_recomputed_layers(make_trainer, method, recompute):
    trainer = make_trainer(method, max_steps=1)
    training.float32_adapters(trainer)
    plan = memory.Plan(512, 1, recompute, False, False, memory.Memory())
    training.use_fast_path(trainer, plan)
    trainer.train()
    measured = measuring.held(trainer, batch_of(2, 256))
    config = trainer.model.config
    found = memory.at_loss(config, method, RANK, 512, recompute=recompute, gpu=False)
    assert_close(found, measured)


@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("recompute", [0, 2, 6])
def test_the_estimate_of_the_fast_path(make_trainer, method, recompute):
    trainer = make_trainer(method, max_steps=1)
    training.float32_adapters(trainer)
    plan = memory.Plan(512, 1, recompute, False, True, memory.Memory())
    training.use_fast_path(trainer, plan)
    trainer.train()
    measured = measuring.held(trainer, batch_of(2, 256))
    config = trainer.model.config
    found = memory.at_loss(
        config, method, RANK, 512, recompute=recompute, gpu=False, fast=True
    )
    assert_close(found, measured)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_of_16_bit_training(make_trainer, method):
    # On a CPU 16 bits are bfloat16, which has the bytes of float16.
    trainer = make_trainer(method, max_steps=1, bf16=True)
    for parameter in trainer.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    training.float32_adapters(trainer)
    trainer.train()
    measured = measuring.held(trainer, batch_of(2, 256))
    config = trainer.model.config
    assert_close(memory.at_loss(config, method, RANK, 512), measured)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> str:
    """A small Llama with two key heads for six query heads, and tied embeddings."""
    from transformers import AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_key_value_heads = 2
    config.num_hidden_layers = 3
    config.tie_word_embeddings = True
    folder = tmp_path_factory.mktemp("grouped")
    AutoModelForCausalLM.from_config(config).half().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_estimate_of_grouped_heads_and_tied_embeddings(
    make_trainer, grouped, method
):
    trainer = make_trainer(method, grouped, max_steps=1)
    training.float32_adapters(trainer)
    trainer.train()
    config = trainer.model.config
    measured = measuring.held(trainer, batch_of(8, 32, padded=4))
    assert_close(memory.at_loss(config, method, RANK, 256, gpu=False), measured)
    trainable, total = models.count_parameters(trainer.model)
    if method == "qlora":
        assert trainable == memory.adapter_parameters(config, RANK)
    else:
        assert measured.weights == pytest.approx(4 * total, rel=1e-3)


def test_the_first_batch_is_measured_unless_another_is_given(trained):
    trainer, _ = trained["qlora"]
    batch = next(iter(trainer.get_train_dataloader()))
    first = measuring.held(trainer)
    assert first == measuring.held(trainer, batch)
    assert first.activations < measuring.held(trainer, batch_of(4, 128)).activations


def test_the_ram_that_was_held_is_counted_and_stays():
    code = (
        "from colab_utils.training import measuring; one = measuring.ram()\n"
        "held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096])\n"
        "two = measuring.ram(); del held; print(two - one, measuring.ram() - two)"
    )
    run = [sys.executable, "-c", code]
    more, less = map(float, subprocess.check_output(run, text=True).split())
    assert more == pytest.approx(200 / 1024, rel=0.2)
    assert less == pytest.approx(0, abs=0.01)


def test_measuring_leaves_no_trace(trained):
    trainer, _ = trained["qlora"]
    trainer.model.eval()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    measuring.held(trainer)
    assert not trainer.model.training
    after = list(trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_llama_2_7b():
    config = seven_b()
    assert memory.adapter_parameters(config, 16) == pytest.approx(2.4986e6 * 16, 1e-4)
    cost = memory.at_loss(config, "qlora", 16, 2048)
    adapters = memory.adapter_parameters(config, 16)
    assert cost.weights + cost.constants == pytest.approx(3.866e9, rel=0.001)
    assert cost.adapters == cost.gradients == 4 * adapters
    assert cost.optimizer == 8 * adapters
    # Measured on a GPU: bytes that a layer keeps of each token.
    kept = costs.activation_bytes(config, "qlora", 16, size=2)
    assert kept == pytest.approx(173.6e3, rel=0.03)
    kept = costs.activation_bytes(config, "qlora", 16, size=2, fast=True)
    assert kept == pytest.approx(93.2e3, rel=0.03)
    full = memory.at_loss(config, "full", 16, 2048)
    assert full.weights + full.gradients + full.optimizer == 16 * 6_738_415_616


def test_gradients_and_activations_are_not_there_at_once():
    """The worst moment is the loss for many tokens, the update for few."""
    config, adapters = seven_b(), memory.adapter_parameters(seven_b(), 64)
    many, few = (memory.estimate(config, "qlora", 64, n) for n in (2048, 16))
    assert many.gradients < 0.1 * 4 * adapters and many.activations > 10e9
    assert few.gradients > 0.9 * 4 * adapters and few.activations < 0.1e9
    more = memory.estimate(config, "qlora", 64, 2048, accumulating=True)
    assert more.peak - many.peak == pytest.approx(4 * adapters, rel=0.1)


def test_what_saves_memory_saves_it():
    ways = [{}, {"recompute": 16}, {"recompute": 32}]
    ways.append({"recompute": 32, "offload": True})
    peaks = [
        memory.estimate(seven_b(), "qlora", 16, 2048, fast=True, **w) for w in ways
    ]
    assert sorted(peaks, key=lambda one: -one.peak) == peaks
    assert peaks[3].checkpoints == 0
    assert peaks[2].weights - peaks[3].weights == 2 * 32000 * 4096


def test_more_tokens_cost_activations_only():
    one, two = (memory.at_loss(seven_b(), "qlora", 16, n) for n in (1024, 2048))
    constant = 2 * memory.adapter_parameters(seven_b(), 16)
    assert two.activations - constant == 2 * (one.activations - constant)
    assert (two.weights, two.gradients) == (one.weights, one.gradients)


def test_the_8_bit_optimizer_takes_a_quarter():
    small, large = (
        memory.estimate(seven_b(), "qlora", 16, 1, optimizer=name).optimizer
        for name in ("adamw_8bit", "adamw_torch")
    )
    assert small == pytest.approx(large / 4, rel=0.02)


def test_inference_holds_weights_and_cache():
    found = memory.inference(seven_b(), "qlora", 16, 2048)
    assert found.activations == 2 * 2 * 4096 * 32 * 2048  # 1 GiB
    # measured on an H100, where cuBLAS takes 48 MiB more: 4.98 GiB
    measured = (4.98 - 48 / 1024) * memory.GIB
    assert found.peak == pytest.approx(measured, rel=0.02)
    whole = memory.inference(seven_b(), "full", 16, 1)
    assert whole.adapters == 0 and whole.weights > 13e9
    assert memory.ram_to_load(seven_b()) < 5e9
    assert memory.ram_to_merge(seven_b()) < 0.75e9


PEAKS = json.loads((ROOT / "bench" / "results" / "peaks.json").read_text())


@pytest.mark.parametrize("row", PEAKS, ids=lambda r: f"{r['shape']}-{r['rank']}")
def test_the_peak_is_what_was_measured_on_a_gpu(monkeypatch, row):
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
        optimizer="adamw_8bit",
    )
    assert found.peak / memory.GIB == pytest.approx(row["measured"], rel=0.03)


# --- the plan -------------------------------------------------------------------------

T4 = 14.2 * memory.GIB


def test_a_plan_fits_and_is_the_fastest_that_does():
    config = seven_b()
    for room in (5.0, 8.0, 11.0, 14.2):
        found = memory.plan(
            config, "qlora", 16, longest=512, update=4096, room=room * memory.GIB
        )
        assert found.cost.total <= room * memory.GIB
        assert found.tokens >= 512 and found.tokens * found.accumulation >= 4096
        if not found.offload:
            spent = memory.seconds(config, "qlora", found.tokens, found.recompute)
            for times in range(1, 9):
                tokens = max(512, -(-4096 // times))
                for k in range(found.recompute if tokens == found.tokens else 33):
                    if memory.seconds(config, "qlora", tokens, k) / tokens >= (
                        spent / found.tokens
                    ):
                        break
                    cost = memory.estimate(
                        config,
                        "qlora",
                        16,
                        tokens,
                        recompute=k,
                        fast=True,
                        accumulating=times > 1,
                        optimizer="adamw_8bit",
                    )
                    assert cost.total > room * memory.GIB


def test_a_t4_recomputes_nothing_at_2048_tokens():
    found = memory.plan(seven_b(), "qlora", 16, longest=512, update=2048, room=T4)
    assert (found.tokens, found.accumulation) == (2048, 1)
    assert (found.recompute, found.offload, found.fast) == (0, False, True)
    assert "2,048 tokens an update; no layers recomputed" in str(found)


def test_a_small_card_keeps_inputs_in_ram():
    room = 4.9 * memory.GIB
    found = memory.plan(seven_b(), "qlora", 16, longest=2048, update=2048, room=room)
    assert found.offload and found.recompute == 32
    assert "32 layers recomputed, their inputs and the embeddings in RAM" in str(found)


def test_inputs_stay_on_the_card_where_they_fit():
    """Offloading recomputes all, and copies: every other way that fits is faster."""
    for room in (5.3, 6.0, 8.0, 10.0, 14.2):
        size = {"longest": 512, "update": 8192, "room": room * memory.GIB}
        assert not memory.plan(seven_b(), "qlora", 16, **size).offload


def test_a_plan_may_leave_the_last_layer_alone():
    """To compute the last one again takes more than to keep it."""
    config = seven_b(num_hidden_layers=22)
    cost = [
        memory.estimate(
            config, "qlora", 16, 4096, recompute=k, fast=True, optimizer="adamw_8bit"
        ).total
        for k in (21, 22)
    ]
    assert cost[0] < cost[1]
    size = {"longest": 4096, "update": 4096, "room": sum(cost) / 2}
    found = memory.plan(config, "qlora", 16, **size)
    assert (found.recompute, found.offload) == (21, False)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_plain_path_keeps_nothing_in_ram(method):
    config, saving = seven_b(), {"recompute": 32, "optimizer": "adamw_8bit"}
    least, unreal = (
        memory.estimate(config, method, 16, 2048, offload=offload, **saving).total
        for offload in (False, True)
    )
    assert unreal < least
    sizes = {"longest": 2048, "update": 2048, "room": (least + unreal) / 2}
    with pytest.raises(MemoryError, match="at its leanest"):
        memory.plan(config, method, 16, fast=False, **sizes)


@given(
    longest=st.integers(1, 4096),
    update=st.integers(1, 40_000),
    room=st.floats(4.5, 80),
    rank=st.sampled_from([4, 64]),
    method=st.sampled_from(memory.METHODS),
)
@settings(deadline=None, max_examples=60)
def test_any_plan_fits_or_says_why_not(longest, update, room, rank, method):
    try:
        found = memory.plan(
            seven_b(),
            method,
            rank,
            longest=longest,
            update=update,
            room=room * memory.GIB,
        )
    except MemoryError as error:
        assert f"{method} at rank {rank} needs" in str(error)
        return
    assert found.cost.total <= room * memory.GIB and found.tokens >= longest
    assert found.fast == (method != "full")


# --- before a download ----------------------------------------------------------------


def test_what_fits_is_told_in_numbers(tmp_path, capsys):
    config = AutoConfig.from_pretrained(models.location("demo"))
    memory.preflight(config, models.location("demo"), memory.Memory(weights=1e6))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"RAM: needs 2\.5 GiB of \d+\.\d free", line)


def test_a_model_without_access_is_no_matter_of_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("colab_utils.hub.can_read", lambda *_: False)
    config = AutoConfig.from_pretrained(models.location("demo"))
    with pytest.raises(PermissionError, match="some/one can't be downloaded"):
        memory.preflight(config, "some/one", memory.Memory(weights=1e6))


def test_what_does_not_fit_is_told_with_the_change(monkeypatch, capsys):
    def full(_):
        return SimpleNamespace(free=5 * memory.GIB)

    monkeypatch.setattr("shutil.disk_usage", full)
    monkeypatch.setattr("colab_utils.hub.can_read", lambda *_: False)
    monkeypatch.setattr(
        "colab_utils.runtime.detect", lambda: SimpleNamespace(device="cpu")
    )
    with pytest.raises(MemoryError) as error:
        memory.preflight(seven_b(), "some/one", memory.Memory(weights=1e15))
    text = str(error.value)
    assert "RAM has" in text and "choose a machine with a GPU, or a smaller" in text
    assert "disk has 5.0 GiB free and 12.6 are needed: delete files" in text
    assert "some/one can't be downloaded" in text


def on_a_gpu(monkeypatch, free: float, card: float = 14.56) -> None:
    """As if there were a T4 with so many GiB free."""
    sizes = int(free * memory.GIB), int(card * memory.GIB)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: sizes)
    machine = SimpleNamespace(device="cuda", accelerator="Tesla T4")
    monkeypatch.setattr("colab_utils.runtime.detect", lambda: machine)


def test_a_card_with_room_is_told_in_numbers(monkeypatch, tmp_path, capsys):
    on_a_gpu(monkeypatch, 14.4)
    memory.preflight(seven_b(), str(tmp_path), memory.Memory(weights=10 * memory.GIB))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tesla T4: needs 10.0 GiB of 14.4 free"
    assert lines[1].startswith("RAM: needs 3.5 GiB of ")  # the weights are on the card


@pytest.mark.parametrize(
    ("gib", "change"),
    [(12, "something else holds memory: restart"), (16, "smaller MODEL, RANK or MAX_")],
)
def test_a_card_without_room_says_why(monkeypatch, tmp_path, gib, change):
    on_a_gpu(monkeypatch, 9.5)
    cost = memory.Memory(weights=gib * memory.GIB)
    said = rf"T4 has 9\.5 GiB free and {gib}\.0 are needed: .*{change}"
    with pytest.raises(MemoryError, match=said):
        memory.preflight(seven_b(), str(tmp_path), cost)


def hub_with(monkeypatch, tmp_path, *files: str) -> None:
    """A cache of the Hub that holds these files, and a model that may be read."""
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    monkeypatch.setattr("colab_utils.hub.can_read", lambda *_: True)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda model, name: str(tmp_path / name) if name in files else None,
    )


def test_a_download_that_was_cut_short_still_needs_disk(monkeypatch, tmp_path, capsys):
    names = "model.safetensors.index.json", "1.safetensors", "2.safetensors"
    for count in (1, 2, 3):
        hub_with(monkeypatch, tmp_path, *names[:count])
        memory.preflight(seven_b(), "some/one", memory.Memory(weights=1e6))
        assert ("disk: needs 12.6 GiB" in capsys.readouterr().out) == (count < 3)


def test_a_quantised_model_is_a_smaller_download(monkeypatch, tmp_path, capsys):
    hub_with(monkeypatch, tmp_path)
    small = seven_b(quantization_config={"load_in_4bit": True})
    memory.preflight(small, "some/one", memory.Memory(weights=1e6))
    assert "disk: needs 3.6 GiB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["/no/such/folder", "./my model"])
def test_a_name_that_is_none_says_so(name):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a name on"):
        memory.preflight(seven_b(), name, memory.Memory(weights=1e6))


def test_names_that_are_unknown_are_named():
    with pytest.raises(ValueError, match=r"'QLoRA' is unknown; .* qlora, lora, full"):
        memory.estimate(seven_b(), "QLoRA", 16, 1)
    with pytest.raises(ValueError, match=r"'QLoRA' is unknown"):
        memory.inference(seven_b(), "QLoRA", 16, 1)
    with pytest.raises(ValueError, match=r"rank = -8, but it must be at least 1"):
        memory.estimate(seven_b(), "lora", -8, 1)
    with pytest.raises(ValueError, match=r"tokens = 0, but it must be at least 1"):
        memory.plan(seven_b(), "lora", 8, longest=0, update=0, room=T4)
    with pytest.raises(ValueError, match=r"Llama's layers, and this one is a gpt2"):
        memory.estimate(AutoConfig.for_model("gpt2"), "lora", 8, 1)
    with pytest.raises(ValueError, match=r"'sgd' is unknown; .* adamw_8bit"):
        memory.estimate(seven_b(), "lora", 16, 1, optimizer="sgd")


def test_gib_add_up():
    cost = memory.Memory(weights=2**30, gradients=2**29, working=2**29, reserve=2**30)
    found = cost.as_gib()
    assert (found["weights"], found["gradients"], found["total"]) == (1.0, 0.5, 3.0)
    assert cost.peak == 2 * 2**30


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is the GPU's here")
def test_the_peak_grows_with_what_is_held():
    import psutil

    used = psutil.Process().memory_info().rss / memory.GIB
    more = int(
        (measuring.peak() - used + 0.1) * 2**28
    )  # so many float32 reach a new peak
    before = measuring.peak()
    held = torch.ones(more)
    assert before + 0.05 < measuring.peak() < before + 0.2
    del held
    measuring.release()
