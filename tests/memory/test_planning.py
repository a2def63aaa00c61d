from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from helpers.families import small
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from colab_utils import memory, models
from colab_utils.memory import costs, planning
from colab_utils.shape import Shape

T4 = 14.2 * memory.GIB


def test_plan_fits_and_is_the_fastest_that_does(seven_b):
    config = seven_b()
    for budget in (5.0, 8.0, 11.0, 14.2):
        found = memory.plan(
            config, "qlora", 16, longest=512, update=4096, budget=budget * memory.GIB
        )
        assert found.cost.total <= budget * memory.GIB
        assert found.tokens >= 512 and found.tokens * found.accumulation >= 4096
        if not found.offload:
            spent = memory.seconds(config, "qlora", found.tokens, found.recompute, 512)
            for times in range(1, 9):
                tokens = max(512, -(-4096 // times))
                for k in range(found.recompute if tokens == found.tokens else 33):
                    if memory.seconds(config, "qlora", tokens, k, 512) / tokens >= (
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
                    assert cost.total > budget * memory.GIB


def test_plan_of_2048_tokens_on_a_t4_checkpoints_no_layer(seven_b):
    found = memory.plan(seven_b(), "qlora", 16, longest=512, update=2048, budget=T4)
    assert (found.tokens, found.accumulation) == (2048, 1)
    assert (found.recompute, found.offload, found.fast) == (0, False, True)
    assert "2,048 tokens an update; gradient checkpointing for no layers" in str(found)


def test_plan_offloads_on_a_small_gpu(seven_b):
    """As few inputs as possible are in RAM, and the plan says how much that is."""
    for budget, offload in ((5.3, 7), (5.2, 13), (5.1, 20)):
        found = memory.plan(
            seven_b(),
            "qlora",
            16,
            longest=2048,
            update=2048,
            budget=budget * memory.GIB,
        )
        assert (found.recompute, found.offload) == (32, offload)
        gib = found.cost.ram / memory.GIB
        assert f"for 32 layers, {gib:.1f} GiB of inputs and embeddings in" in str(found)


def test_plan_counts_colabs_ram(seven_b):
    """Of 65,536 tokens, Colab's RAM can't hold the inputs: some are on disk."""
    size = {"longest": 32_768, "update": 32_768, "budget": 14.26 * memory.GIB}
    found = memory.plan(seven_b(), "qlora", 16, **size)
    assert found.recompute == 32 and 0 < found.offload < 32
    assert found.cost.ram < 12.7e9 - memory.ram_to_load(seven_b())
    size |= {"longest": 65_536, "update": 65_536}
    small = memory.plan(seven_b(), "qlora", 16, **size)
    assert 0 < small.disk < small.offload and small.tiles > 1
    assert small.cost.ram < 12.7e9 - memory.ram_to_load(seven_b())
    assert small.cost.disk == small.disk * 65_536 * 4096 * 2
    assert f"{small.cost.disk / memory.GIB:.1f} GiB of inputs on disk" in str(small)
    large = memory.plan(seven_b(), "qlora", 16, ram=64e9, **size)
    assert large.offload > 16 and (large.disk, large.tiles) == (0, 1)
    message = (
        r"must keep 7\.\d GiB in RAM and \d\.\d GiB on disk. Of 12\.7 GB of RAM 7\.\d "
        r"GiB are free for it, and of the disk 0\.0 GiB"
    )
    with pytest.raises(MemoryError, match=message):
        memory.plan(seven_b(), "qlora", 16, disk=0.0, **size)


@pytest.mark.parametrize(("heads", "tokens"), [(32, 163_840), (8, 131_072)])
def test_plan_of_the_longest_rows_on_colab(seven_b, heads, tokens):
    config = seven_b(num_key_value_heads=heads)
    size = {"longest": tokens, "update": tokens, "budget": 14.26 * memory.GIB}
    found = memory.plan(config, "qlora", 16, **size)
    assert found.recompute == 32 and found.tiles in (4, 8)
    assert f"for 32 layers in {found.tiles} tiles" in str(found)
    assert found.cost.total <= size["budget"] and found.cost.disk <= costs.COLAB_DISK


def test_plan_without_equal_parts_of_the_heads_has_no_tiles(seven_b):
    assert planning.tile_counts(Shape.from_config(seven_b(num_key_value_heads=1))) == []
    config = seven_b(num_key_value_heads=1)
    size = {"longest": 200_000, "update": 200_000, "budget": 14.26 * memory.GIB}
    with pytest.raises(MemoryError, match="needs at least"):
        memory.plan(config, "qlora", 16, ram=1e12, **size)


def test_plan_takes_smaller_batches_where_ram_is_short(seven_b):
    """Both plans fit the GPU; only the one with two batches an update fits the RAM."""
    size = {"longest": 32_768, "update": 65_536, "budget": 14.2 * memory.GIB}
    large, small = (
        memory.plan(seven_b(), "qlora", 16, ram=ram, **size) for ram in (64e9, 20e9)
    )
    assert (large.tokens, small.tokens) == (65_536, 32_768)
    assert small.cost.ram < 20e9 - memory.ram_to_load(seven_b())


def test_seconds_counts_attention(seven_b):
    """At 16,384 tokens a document, attention took 2.4 times as long as the products."""
    alone, with_attention = (
        memory.seconds(seven_b(), "qlora", 16_384, 29, n) for n in (0, 16_384)
    )
    assert with_attention / alone - 1 == pytest.approx(2271 / 945, rel=0.1)
    short = memory.seconds(seven_b(), "qlora", 2048, 0, 300)
    assert short / memory.seconds(seven_b(), "qlora", 2048, 0, 0) < 1.12


def test_plan_offloads_only_where_nothing_else_fits(seven_b):
    """Offloading checkpoints all layers and copies inputs: other plans are faster."""
    for budget in (5.3, 6.0, 8.0, 10.0, 14.2):
        size = {"longest": 512, "update": 8192, "budget": budget * memory.GIB}
        assert not memory.plan(seven_b(), "qlora", 16, **size).offload


def test_plan_may_keep_the_last_layer(seven_b):
    """On the reference path, checkpointing the last layer too takes more memory."""
    config = seven_b(num_hidden_layers=22, vocab_size=1000)
    cost = [
        memory.estimate(
            config, "qlora", 16, 4096, recompute=k, optimizer="adamw_8bit"
        ).total
        for k in (21, 22)
    ]
    assert cost[0] < cost[1]
    size = {"longest": 4096, "update": 4096, "budget": sum(cost) / 2, "fast": False}
    found = memory.plan(config, "qlora", 16, **size)
    assert (found.recompute, found.offload) == (21, 0)


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("qlora", "qlora at rank 16 needs .* Use a smaller RANK or MODEL, or set"),
        ("lora", "Use METHOD = 'qlora', a smaller RANK or MODEL, or set"),
        ("full", "^full needs at least .* Use METHOD = 'qlora' or a smaller MODEL, or"),
    ],
)
def test_plan_that_does_not_fit_advises_what_helps(seven_b, method, advice):
    sizes = {"longest": 512, "update": 2048, "budget": 2.0 * memory.GIB}
    with pytest.raises(MemoryError, match=advice):
        memory.plan(seven_b(), method, 16, **sizes)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_plan_without_the_fast_path_never_offloads(seven_b, method):
    config, saving = seven_b(), {"recompute": 32, "optimizer": "adamw_8bit"}
    least, unreal = (
        memory.estimate(config, method, 16, 2048, offload=offload, **saving).total
        for offload in (False, True)
    )
    assert unreal < least
    sizes = {"longest": 2048, "update": 2048, "budget": (least + unreal) / 2}
    with pytest.raises(MemoryError, match="needs at least"):
        memory.plan(config, method, 16, fast=False, **sizes)


@pytest.mark.slow
@given(
    longest=st.integers(1, 4096),
    update=st.integers(1, 40_000),
    budget=st.floats(4.5, 80),
    rank=st.sampled_from([4, 64]),
    method=st.sampled_from(memory.METHODS),
)
@settings(deadline=None, max_examples=60)
def test_plan_fits_or_says_why_not(seven_b, longest, update, budget, rank, method):
    try:
        found = memory.plan(
            seven_b(),
            method,
            rank,
            longest=longest,
            update=update,
            budget=budget * memory.GIB,
        )
    except MemoryError as error:
        rank_too = "" if method == "full" else f" at rank {rank}"
        assert str(error).startswith(f"{method}{rank_too} needs at least")
        return
    assert found.cost.total <= budget * memory.GIB and found.tokens >= longest
    assert found.fast == (method != "full")


def test_preflight_counts_the_ram_of_the_plan(monkeypatch, tmp_path, seven_b):
    on_a_gpu(monkeypatch, 14.4)
    free = SimpleNamespace(available=11 * memory.GIB, total=12.7 * memory.GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    memory.preflight(seven_b(), str(tmp_path), memory.Memory(ram=7 * memory.GIB))
    with pytest.raises(MemoryError, match=r"11\.0 GiB free and 13\.5 are .*MAX_TOKENS"):
        memory.preflight(seven_b(), str(tmp_path), memory.Memory(ram=10 * memory.GIB))


def test_preflight_counts_the_ram_of_each_process(monkeypatch, tmp_path, seven_b):
    """Two processes load the model, and the notebook's own waits in RAM."""
    on_a_gpu(monkeypatch, 14.4)
    free = SimpleNamespace(available=29 * memory.GIB, total=29 * memory.GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    each = 2.5 * memory.GIB + 4 * 2 * 32000 * 4096
    # The models of two processes and the notebook's own, and the inputs of all three.
    most = (29 * memory.GIB - 3 * each) / 3 - 1e3
    cost = memory.Memory(weights=most, ram=most)
    memory.preflight(seven_b(), str(tmp_path), cost, 2)
    cost = memory.Memory(weights=most, ram=most + 1e6)
    with pytest.raises(MemoryError, match="RAM has 29"):
        memory.preflight(seven_b(), str(tmp_path), cost, 2)


def test_preflight_of_shards_counts_no_model_in_the_notebook(
    monkeypatch, tmp_path, seven_b
):
    on_a_gpu(monkeypatch, 14.4)
    each = 2.5 * memory.GIB + 4 * 2 * 32000 * 4096
    most = 2 * each + 2.5 * memory.GIB  # two processes and the notebook
    cost = memory.Memory(weights=memory.GIB)
    given = (seven_b(), str(tmp_path), cost, 2, True)
    for available in (most + 1e6, most - 1e6):
        free = SimpleNamespace(available=available, total=29 * memory.GIB)
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: free)
        if available > most:
            memory.preflight(*given)
            continue
        with pytest.raises(MemoryError, match="restart the session"):
            memory.preflight(*given)


def test_preflight_prints_the_numbers(capsys):
    config = AutoConfig.from_pretrained(models.location("demo"))
    memory.preflight(config, models.location("demo"), memory.Memory(weights=1e6))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"RAM: needs 2\.5 GiB of \d+\.\d free", line)


def test_preflight_without_access(monkeypatch):
    monkeypatch.setattr("colab_utils.hub.can_read", lambda *_: False)
    config = AutoConfig.from_pretrained(models.location("demo"))
    with pytest.raises(PermissionError, match="some/one can't be downloaded"):
        memory.preflight(config, "some/one", memory.Memory(weights=1e6))


def test_preflight_says_what_to_change(monkeypatch, seven_b):
    def usage(_):
        return SimpleNamespace(free=5 * memory.GIB)

    monkeypatch.setattr("shutil.disk_usage", usage)
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


def on_a_gpu(monkeypatch, free: float, total: float = 14.56) -> None:
    """Pretend to be on a T4 with `free` GiB free."""
    sizes = int(free * memory.GIB), int(total * memory.GIB)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: sizes)
    machine = SimpleNamespace(device="cuda", accelerator="Tesla T4")
    monkeypatch.setattr("colab_utils.runtime.detect", lambda: machine)


def test_preflight_on_a_gpu(monkeypatch, tmp_path, capsys, seven_b):
    on_a_gpu(monkeypatch, 14.4)
    memory.preflight(seven_b(), str(tmp_path), memory.Memory(weights=10 * memory.GIB))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tesla T4: needs 10.0 GiB of 14.4 free"
    assert lines[1].startswith("RAM: needs 3.5 GiB of ")  # the weights are on the GPU


@pytest.mark.parametrize(
    ("gib", "change"),
    [(12, "something else holds memory: restart"), (16, "smaller MODEL, RANK or MAX_")],
)
def test_preflight_on_a_gpu_that_is_too_small(
    monkeypatch, tmp_path, seven_b, gib, change
):
    on_a_gpu(monkeypatch, 9.5)
    cost = memory.Memory(weights=gib * memory.GIB)
    message = rf"T4 has 9\.5 GiB free and {gib}\.0 are needed: .*{change}"
    with pytest.raises(MemoryError, match=message):
        memory.preflight(seven_b(), str(tmp_path), cost)


def hub_with(monkeypatch, tmp_path, *files: str) -> None:
    """Let the Hub's cache hold these files of a model that may be read."""
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    monkeypatch.setattr("colab_utils.hub.can_read", lambda *_: True)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda model, name: str(tmp_path / name) if name in files else None,
    )


def test_preflight_of_an_incomplete_download(monkeypatch, tmp_path, capsys, seven_b):
    names = "model.safetensors.index.json", "1.safetensors", "2.safetensors"
    for count in (1, 2, 3):
        hub_with(monkeypatch, tmp_path, *names[:count])
        memory.preflight(seven_b(), "some/one", memory.Memory(weights=1e6))
        assert ("disk: needs 12.6 GiB" in capsys.readouterr().out) == (count < 3)


def test_preflight_of_a_quantized_model(monkeypatch, tmp_path, capsys, seven_b):
    hub_with(monkeypatch, tmp_path)
    small = seven_b(quantization_config={"load_in_4bit": True})
    memory.preflight(small, "some/one", memory.Memory(weights=1e6))
    assert "disk: needs 3.6 GiB" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["/no/such/folder", "./my model"])
def test_preflight_of_a_name_that_does_not_exist(seven_b, name):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a name on"):
        memory.preflight(seven_b(), name, memory.Memory(weights=1e6))


@pytest.mark.parametrize(
    ("name", "changes", "fast", "said"),
    [
        ("qwen2", {}, True, ""),
        ("gemma2", {}, False, ""),
        ("mistral", {"sliding_window": 64}, True, ""),
        ("mistral", {"sliding_window": 63}, False, "more than the model's sliding win"),
    ],
)
def test_plan_takes_the_path_that_the_model_allows(name, changes, fast, said, capsys):
    settings = {"longest": 64, "update": 128, "budget": 2**30, "gpu": False}
    found = memory.plan(small(name, **changes), "qlora", 4, **settings)
    assert found.fast == fast and said in capsys.readouterr().out


def test_plan_shards_what_one_gpu_cannot_hold(seven_b):
    """Code Llama 34B fits two T4s, Llama 2 70B four."""
    small = {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
    for inner, layers, shards in ((22016, 48, 2), (28672, 80, 4)):
        config = seven_b(**small, intermediate_size=inner, num_hidden_layers=layers)
        given = {"longest": 512, "update": 2048, "budget": T4}
        with pytest.raises(MemoryError, match="qlora at rank 16 needs at least"):
            memory.plan(config, "qlora", 16, shards=shards // 2, **given)
        found = memory.plan(config, "qlora", 16, shards=shards, **given)
        assert found.cost.total <= T4 and found.shards == shards
        assert f"1/{shards} of each layer's weights on a GPU" in str(found)


def test_plan_takes_larger_batches_over_a_slow_connection(seven_b):
    """A micro-batch has to compute for as long as its gathers take."""
    given = {"longest": 256, "update": 2048, "budget": 7 * memory.GIB, "shards": 2}
    fast = memory.plan(seven_b(), "qlora", 16, **given)
    slow = memory.plan(seven_b(), "qlora", 16, bandwidth=1e9, **given)
    assert slow.tokens > fast.tokens


def test_gather_seconds_of_llama_2_7b(seven_b):
    """30 of 32 layers in each pass, half of each from the other GPU."""
    received = memory.gathered_bytes(seven_b(), shards=2)
    assert received == pytest.approx(2 * 30 / 32 * 6.476e9 * (1 / 2 + 1 / 64) / 2, 1e-3)
    assert memory.gather_seconds(seven_b(), 2, bandwidth=10e9) == received / 10e9
    assert memory.gathered_bytes(seven_b(), shards=1) == 0
