"""The definitions of notebook 05, lifted out of it, against PEFT and bitsandbytes."""

from __future__ import annotations

import ast
import gc
import json
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from colab_utils import data, memory, models, weights
from colab_utils.shape import Shape

NOTEBOOK = Path(__file__).parents[2] / "notebooks/05_nano_lora.ipynb"
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)


def sources(tag: str) -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if tag in c["metadata"].get("tags", [])]


def definitions(tag: str) -> list[ast.stmt]:
    """Return the leading imports, functions, classes and constants of the cells."""
    found = []
    for source in sources(tag):
        for node in ast.parse(source).body:
            if isinstance(node, KEPT):
                found.append(node)
            elif tag == "by-hand":
                break  # what follows uses the definitions
    return found


@pytest.fixture(scope="module")
def nano() -> SimpleNamespace:
    """The names that the cells tagged `by-hand` define."""
    space: dict = {"__name__": "nano", "AT_ONCE": 16}
    body = definitions("imports") + definitions("by-hand")
    exec(compile(ast.Module(body, type_ignores=[]), str(NOTEBOOK), "exec"), space)
    return SimpleNamespace(space=space, **space)


@pytest.fixture(scope="module")
def tokens(tokenizer, demo_rows) -> list[data.Tokens]:
    return data.tokenize(demo_rows, tokenizer)


@pytest.fixture
def demo_model():
    return models.load_model("demo")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def logits(model, tokens) -> torch.Tensor:
    ids = torch.tensor([tokens[0]["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_everything_by_hand_has_fewer_than_150_lines():
    lines = [line for text in sources("by-hand") for line in text.splitlines()]
    assert 50 < sum(bool(line.strip()) for line in lines) < 150
    (layer,) = (d for d in definitions("by-hand") if getattr(d, "name", 0) == "inject")
    assert layer.end_lineno - layer.lineno < 15


def test_levels_are_those_of_bitsandbytes(nano):
    expected = bnb.functional.get_4bit_type("nf4", "cpu")
    assert nano.LEVELS.tolist() == pytest.approx(expected.tolist(), abs=2e-7)


@settings(max_examples=3 * settings.default.max_examples // 5, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    columns=st.sampled_from([64, 128, 448]),
    spread=st.sampled_from([1e-6, 0.02, 3.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_quantize_gives_the_bytes_of_bitsandbytes(
    nano, seed, rows, columns, spread, dtype
):
    draw = torch.Generator().manual_seed(seed)
    W = (torch.randn(rows, columns, generator=draw) * spread).to(dtype)
    W[0, :64].clamp_(min=1e-6)  # no block of zeros
    theirs, state = bnb.functional.quantize_4bit(W, blocksize=64, quant_type="nf4")
    packed, scales = nano.quantize(W)
    assert torch.equal(packed, theirs.flatten())
    assert torch.equal(scales, state.absmax)
    expected = bnb.functional.dequantize_4bit(theirs, state).float()
    ours = nano.dequantize(packed, scales, W.shape)
    rounding = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert (ours - expected).abs().max() <= rounding * W.abs().max() + 1e-7


def test_dequantize_keeps_a_block_of_zeros(nano):
    W = torch.zeros(1, 64)
    assert torch.equal(nano.dequantize(*nano.quantize(W), W.shape), W)


@pytest.mark.parametrize("bias", [False, True])
def test_take_over_gives_output_and_gradient_of_linear4bit(nano, bias):
    theirs = bnb.nn.Linear4bit(
        128, 96, bias=bias, compute_dtype=torch.float32, quant_type="nf4"
    ).to("cpu")
    theirs.requires_grad_(False)
    ours = nano.take_over(theirs)
    x = torch.randn(5, 128, requires_grad=True)
    y = torch.randn(5, 96)
    found = []
    for layer in (ours, theirs):
        out = layer(x)
        (gradient,) = torch.autograd.grad((out * y).sum(), x)
        found.append((out, gradient))
    for mine, reference in zip(*found, strict=True):
        assert relative(mine, reference) < 1e-6
    assert ours.dequantize(torch.float16).dtype == torch.float16


def test_product_keeps_no_tensor_for_backward(nano):
    layer = nano.NF4Linear(*nano.quantize(torch.randn(64, 64)), (64, 64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        layer(torch.randn(3, 64, requires_grad=True))
    assert kept == []


def test_taken_over_model_computes_the_same(nano, tokens):
    model = models.load_model("demo", models.quantization_config())
    before = logits(model, tokens)
    nano.swap(model, lambda path, layer: nano.take_over(layer))
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in model.modules())
    assert relative(logits(model, tokens), before) < 1e-5


@pytest.mark.parametrize("names", [None, ("q_proj", "v_proj")], ids=["all", "q-v"])
def test_inject_leaves_the_model_unchanged(nano, demo_model, tokens, names):
    before = logits(demo_model, tokens)
    nano.inject(demo_model, 64, alpha=1)  # an older adapter leaves no trace
    for weight in nano.trainable(demo_model):
        weight.data.normal_()
    adapters = nano.inject(demo_model, 3, alpha=6, names=names or nano.LINEARS)
    assert torch.equal(logits(demo_model, tokens), before)
    assert len(adapters) == 6 * (2 if names else 7)
    found = sum(weight.numel() for weight in nano.trainable(demo_model))
    every = memory.adapter_parameters(demo_model.config, 3)
    assert found == (6 * 2 * 3 * (192 + 192) if names else every)


@pytest.fixture
def pair(nano, demo_model):
    """The demo model with our adapter and with PEFT's: the same random A and B."""
    ours, theirs = demo_model, models.load_model("demo")
    adapters = nano.inject(ours, 4, alpha=12)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(nano.LINEARS))
    theirs = get_peft_model(theirs, config)
    with torch.no_grad():
        for path, layer in adapters.items():
            layer.B.normal_(std=0.05)
            other = theirs.get_submodule(f"base_model.model.{path}")
            other.lora_A.default.weight.copy_(layer.A)
            other.lora_B.default.weight.copy_(layer.B)
    return ours, theirs, adapters


def test_output_and_gradients_equal_those_of_peft(nano, pair, tokens):
    ours, theirs, adapters = pair
    assert relative(logits(ours, tokens), logits(theirs, tokens)) < 1e-6
    for model in (ours, theirs):
        nano.loss_sum(model, tokens[:6]).backward()
    for path, layer in adapters.items():
        other = theirs.get_submodule(f"base_model.model.{path}")
        assert relative(layer.A.grad, other.lora_A.default.weight.grad) < 1e-6
        assert relative(layer.B.grad, other.lora_B.default.weight.grad) < 1e-6


def test_merged_weights_equal_those_of_peft(pair):
    _, theirs, adapters = pair
    whole = theirs.merge_and_unload()
    for path, layer in adapters.items():
        assert relative(layer.merged(), whole.get_submodule(path).weight) < 1e-6


def test_qlora_by_hand_equals_peft_on_bitsandbytes(nano, tokens):
    ours, theirs = [
        models.load_model("demo", models.quantization_config()) for _ in range(2)
    ]
    nano.swap(ours, lambda path, layer: nano.take_over(layer))
    nano.inject(ours, 4, alpha=8)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(nano.LINEARS))
    theirs = get_peft_model(theirs, config)
    both = [nano.trainable(model) for model in (ours, theirs)]
    for mine, other in zip(*both, strict=True):
        other.data = mine.data.normal_(std=0.05).clone()
    for model in (ours, theirs):
        nano.loss_sum(model, tokens[:4]).backward()
    for mine, other in zip(*both, strict=True):
        assert relative(mine.grad, other.grad) < 1e-5


def test_loss_is_that_of_transformers(nano, demo_model, tokens):
    rows = sorted(tokens, key=lambda row: len(row["input_ids"]))[::9]
    ids, mask = nano.batch(rows, "cpu")
    assert len({len(row["input_ids"]) for row in rows}) > 1  # some are padded
    with torch.no_grad():
        mean = demo_model(input_ids=ids, labels=ids.where(mask.bool(), -100)).loss
        found = nano.loss_sum(demo_model, rows) / mask.sum()
        alone = sum(nano.loss_sum(demo_model, [row]) for row in rows) / mask.sum()
    assert found.item() == pytest.approx(mean.item(), rel=1e-5)
    assert alone.item() == pytest.approx(mean.item(), rel=1e-5)  # no row sees padding


def test_parts_of_an_update_add_up(nano, demo_model, tokens):
    nano.inject(demo_model, 2, alpha=4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    found = []
    for at_once in (16, 5):
        nano.space["AT_ONCE"] = at_once
        demo_model.zero_grad()
        loss = nano.backward(demo_model, tokens[:16], scaler)
        found.append((loss, [w.grad.clone() for w in nano.trainable(demo_model)]))
    nano.space["AT_ONCE"] = 16
    (loss, whole), (other, parts) = found
    assert other == pytest.approx(loss, rel=1e-5)
    pairs = list(zip(parts, whole, strict=True))[1::2]  # of B: A has none while B is 0
    assert max(relative(*pair) for pair in pairs) < 1e-4


@pytest.mark.slow
def test_train_lowers_the_loss_and_leaves_the_base(nano, demo_model, tokens):
    torch.manual_seed(0)
    base = {n: w.detach().clone() for n, w in demo_model.named_parameters()}
    nano.inject(demo_model, 8, alpha=16)
    losses = nano.train(demo_model, tokens, 12, 3e-3, size=2, seed=0, pool=1)
    assert len(losses) == 12 and losses[-1] < 0.6 * losses[0]
    assert all(weight.grad is None for weight in nano.trainable(demo_model))
    left = {n.replace(".base.", "."): w for n, w in demo_model.named_parameters()}
    assert all(torch.equal(left[name], weight) for name, weight in base.items())


def test_batches_take_every_row_once_an_epoch(nano):
    rows = [{"input_ids": [n] * (n % 7 + 1)} for n in range(20)]
    drawn = nano.batches(rows, 4, seed=1, pool=8)
    epochs = [[next(drawn) for _ in range(5)] for _ in range(2)]
    assert [list(map(len, epoch)) for epoch in epochs] == [[4, 4, 4, 4, 4]] * 2
    for epoch in epochs:
        assert sorted(row["input_ids"][0] for one in epoch for row in one) == list(
            range(20)
        )
        for first, second in (epoch[:2], epoch[2:4]):  # each pool is sorted by length
            lengths = [len(row["input_ids"]) for row in first + second]
            assert lengths == sorted(lengths)
    assert epochs[0] != epochs[1]


def test_batches_end_an_epoch_with_the_rows_that_are_left(nano):
    rows = [{"input_ids": [n]} for n in range(10)]
    drawn = nano.batches(rows, 4, seed=1, pool=4)
    assert [len(next(drawn)) for _ in range(6)] == [4, 4, 2] * 2


def test_answers_are_those_of_all_logits(nano, demo_model, tokens):
    rows = sorted(tokens, key=lambda row: len(row["input_ids"]))[::9]
    ids, mask = nano.batch(rows, "cpu")
    with torch.no_grad():
        found, truth, sizes = nano.answers(demo_model, rows)
        every = demo_model(input_ids=ids).logits[:, :-1]
    trained = mask[:, 1:].bool()
    assert torch.equal(truth, ids[:, 1:][trained])
    assert sizes.tolist() == trained.sum(1).tolist()
    assert relative(found, every[trained]) < 1e-6


@pytest.mark.parametrize(("rank", "rows"), [(1, 3), (64, 8)])
def test_activation_bytes_are_predicted_within_3_percent(nano, tokens, rank, rows):
    from colab_utils.training.measuring import StorageCounter

    model = models.load_model("demo", models.quantization_config())
    nano.swap(model, lambda path, layer: nano.take_over(layer))
    nano.inject(model, rank, alpha=rank)
    # The logits count, so that all tokens but the first are trained.
    some = [{**r, "assistant_masks": [1] * len(r["input_ids"])} for r in tokens[:rows]]
    counter, kept = StorageCounter(), []
    counter.add([*model.parameters(), *model.buffers()])

    def keep(tensor):
        kept.append(counter.add([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nano.loss_sum(model, some)
    ids, mask = nano.batch(some, "cpu")
    shape = Shape.from_config(model.config)
    trained = mask[:, 1:].sum().item()
    found = nano.activation_bytes(shape, rank, 4, ids.numel(), trained)
    assert sum(kept) == pytest.approx(found, rel=0.015)


def test_counting_what_autograd_keeps_leaves_nothing_in_memory(nano, demo_model):
    from colab_utils.training.measuring import StorageCounter

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    source = next(s for c in cells if "def kept_bytes(" in (s := "".join(c["source"])))
    space = {"StorageCounter": StorageCounter, "torch": torch}
    body = [node for node in ast.parse(source).body if isinstance(node, KEPT[2:3])]
    exec(compile(ast.Module(body, type_ignores=[]), str(NOTEBOOK), "exec"), space)
    nano.inject(demo_model, 4, alpha=8)
    rows = [{"input_ids": [5] * 40, "assistant_masks": [1] * 40}]

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    before = alive()
    kept = space["kept_bytes"](demo_model, lambda: nano.loss_sum(demo_model, rows))
    # A graph that its own hook keeps alive is never freed, and fills the GPU.
    assert kept > 0 and alive() == before


def test_peft_and_the_course_load_the_saved_adapter(nano, demo_model, tokens, tmp_path):
    adapters = nano.inject(demo_model, 4, alpha=12)
    for layer in adapters.values():
        torch.nn.init.normal_(layer.B, std=0.05)
    nano.save_adapter(adapters, "demo", 4, 12, tmp_path)
    loaded = PeftModel.from_pretrained(models.load_model("demo"), tmp_path)
    assert relative(logits(demo_model, tokens), logits(loaded, tokens)) < 1e-6
    updates, replaced = weights.read_adapter(tmp_path)
    assert len(updates) == len(adapters) and not replaced
    for path, layer in adapters.items():
        update = updates[f"{path}.weight"]
        assert update.scale == 3.0
        assert torch.equal(update.a, layer.A) and torch.equal(update.b, layer.B)
