"""The fast path computes what transformers and PEFT compute, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig

from colab_utils import models
from colab_utils.fast import layer as layers
from colab_utils.fast import ops
from colab_utils.fast import patch as kernels

# transformers computes norms and the loss in float32 whatever the model's dtype is.
NOISE = 1e-5

SHAPES = {
    "plain": {},
    "grouped heads": {"num_key_value_heads": 2},
    "tied, wide heads": {"tie_word_embeddings": True, "head_dim": 48},
}
LORAS = {
    "all linears": {"target_modules": "all-linear"},
    "queries and values": {"target_modules": ["q_proj", "v_proj"]},
    "ranks of its own": {
        "target_modules": "all-linear",
        "rank_pattern": {"k_proj": 2, "up_proj": 8},
        "alpha_pattern": {"o_proj": 1},
        "use_rslora": True,
    },
    "later layers": {
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [1, 2],
    },
}


def small_llama(dtype=torch.float64, **changes):
    """A Llama of three layers with random weights."""
    torch.manual_seed(0)
    usual = {
        "vocab_size": 256,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    config = LlamaConfig(**usual | changes)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def with_lora(model, **settings):
    """The model with an adapter whose B is not zero, or A would get no gradient."""
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    torch.manual_seed(1)
    model = get_peft_model(model, config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def padded(lengths: list[int], vocabulary: int = 256) -> dict[str, torch.Tensor]:
    """Rows of random tokens, padded on the right; half of the tokens are trained on."""
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(3, vocabulary, (len(lengths), max(lengths)), generator=draw)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    trained = mask & (torch.rand(ids.shape, generator=draw) < 0.5)
    labels = torch.where(trained, ids, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def packed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same rows one after another, as TRL packs them."""
    mask = batch["attention_mask"].bool()
    positions = torch.arange(mask.shape[1]).expand_as(mask)[mask]
    labels = batch["labels"][mask].clone()
    labels[positions == 0] = -100
    rows = {"input_ids": batch["input_ids"][mask], "labels": labels}
    return {k: v[None] for k, v in {**rows, "position_ids": positions}.items()}


def gradients(model, batch, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradient of every adapter tensor."""
    model.zero_grad()
    loss = model(**batch, use_cache=False, **kwargs).loss
    loss.backward()
    named = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return loss.detach(), {n: p.grad.clone() for n, p in named}


def assert_equal(found, expected, rel: float) -> None:
    assert found[0] == pytest.approx(expected[0].item(), rel=rel)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        error = (found[1][name] - grad).norm() / grad.norm()
        assert grad.norm() > 0 and error < rel, (name, error)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_are_pefts(shape, lora):
    model = with_lora(small_llama(**shape), **lora)
    batch = padded([11, 7, 2, 16])
    expected = gradients(model, batch)
    assert kernels.apply(model)
    assert_equal(gradients(model, batch), expected, NOISE)
    kernels.remove(model)
    assert_equal(gradients(model, batch), expected, 1e-12)


@pytest.mark.parametrize(("recompute", "offload"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("tied", [False, True])
def test_saving_memory_changes_nothing(recompute, offload, tied):
    model = with_lora(
        small_llama(tie_word_embeddings=tied), **LORAS["ranks of its own"]
    )
    batch = padded([11, 7])
    kernels.apply(model)
    expected = gradients(model, batch)
    kernels.apply(model, recompute, offload)
    assert_equal(gradients(model, batch), expected, 1e-12)


def test_recomputed_layers_keep_only_their_input():
    model, batch = with_lora(small_llama(), target_modules="all-linear"), padded([64])

    def held(recompute: int) -> int:
        kernels.apply(model, recompute)
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes(), tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(**batch)
        return sum(size for size, _ in seen.values())

    sizes = [held(k) for k in (0, 1, 2, 3)]
    one = sizes[0] - sizes[1]
    assert one > 0 and sizes[1] - sizes[2] == sizes[2] - sizes[3] == one


def test_packed_rows_are_the_rows_one_by_one():
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = padded([9, 2, 16, 5])
    count = (packed(batch)["labels"] != -100).sum()
    total, grads = 0, {}
    for row in range(4):
        n = int(batch["attention_mask"][row].sum())
        one = {k: v[row : row + 1, :n] for k, v in batch.items()}
        loss, found = gradients(model, one, num_items_in_batch=count)
        total = total + loss
        grads = {k: grads.get(k, 0) + g for k, g in found.items()}
    kernels.apply(model)
    together = gradients(model, packed(batch), num_items_in_batch=count)
    assert_equal(together, (total, grads), NOISE)


def test_a_document_does_not_see_another():
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model)
    batch = packed(padded([9, 6]))
    batch["labels"][0, :9] = -100  # the loss of the second document alone
    first = gradients(model, batch)
    batch["input_ids"][0, :9] = 7
    assert_equal(gradients(model, batch), first, 1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_beside_4_bit_weights(tmp_path, grouped):
    name = "demo"
    if grouped:
        config = AutoConfig.from_pretrained(models.location("demo"))
        config.num_key_value_heads = 1
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).half().save_pretrained(tmp_path)
        name = str(tmp_path)
    model = models.load_model(name, models.quantization_config())
    model = with_lora(model, target_modules="all-linear")
    batch = padded([40, 13, 64, 30], vocabulary=1024)
    expected = gradients(model, batch)
    assert kernels.apply(model, recompute=2)
    assert_equal(gradients(model, batch), expected, NOISE)
    assert_equal(gradients(model, packed(batch)), expected, NOISE)


def test_the_loss_reports_how_many_tokens_were_right(model, tokenizer):
    model = copy.deepcopy(model)
    model = with_lora(model, target_modules="all-linear")
    batch = padded([30, 20], vocabulary=1024)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    right = (logits.argmax(-1) == targets)[targets != -100].float().mean()
    kernels.apply(model)
    assert model(**batch).token_accuracy == pytest.approx(right.item())


def test_a_batch_without_trained_tokens_has_no_loss():
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model)
    batch = padded([5]) | {"labels": torch.full((1, 5), -100)}
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0


def test_evaluation_and_generation_are_transformers_own():
    model = with_lora(small_llama(torch.float32), target_modules="all-linear")
    batch = padded([8, 8])
    model.eval()
    with torch.no_grad():
        expected = model(**batch)
        kernels.apply(model, recompute=3, offload=True)
        found = model(**batch)
        assert torch.equal(found.logits, expected.logits)
        ids = model.generate(input_ids=batch["input_ids"], max_new_tokens=4)
    assert ids.shape == (2, 12)


def test_the_positions_of_a_row_may_begin_anywhere():
    """Documents are told from each other by rows, not only by a position of 0."""
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = padded([8, 8])
    batch["position_ids"] = torch.stack([torch.arange(8), torch.arange(8, 16)])
    expected = gradients(model, batch)
    kernels.apply(model)
    assert_equal(gradients(model, batch), expected, NOISE)
    del batch["attention_mask"]
    assert_equal(gradients(model, batch), expected, NOISE)


@pytest.mark.parametrize("given", [True, False])
def test_padding_on_the_left(given):
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = {name: t.flip(1) for name, t in padded([11, 7, 3]).items()}
    batch["labels"][:, 0] = -100  # of a row's first token nothing is predicted
    for row, begin in enumerate((0, 4, 8)):
        batch["labels"][row, begin] = -100
    if given:
        batch["position_ids"] = torch.arange(11).expand(3, 11)
    expected = gradients(model, batch)
    kernels.apply(model)
    assert_equal(gradients(model, batch), expected, NOISE)


UNKNOWN = {
    "a cache": (
        lambda batch: batch | {"past_key_values": DynamicCache()},
        TypeError,
        r"not know the input past_key_values\. Train",
    ),
    "hidden states": (
        lambda batch: batch | {"output_hidden_states": True},
        TypeError,
        r"not know the input output_hidden_states\. Train",
    ),
    "a tuple": (
        lambda batch: batch | {"return_dict": False},
        TypeError,
        r"not know the input return_dict\. Train",
    ),
    "a hole": (
        lambda batch: batch | {"attention_mask": torch.tensor([[1, 0, 1, 1]])},
        ValueError,
        "mask has a hole",
    ),
    "a mask of pairs": (
        lambda batch: batch | {"attention_mask": torch.ones(1, 1, 4, 4)},
        ValueError,
        r"mask of \(1, 4\), rows by tokens, and this one has \(1, 1, 4, 4\)",
    ),
    "no token": (
        lambda batch: batch | {"attention_mask": torch.zeros(1, 4)},
        ValueError,
        "mask leaves no token",
    ),
}


@pytest.mark.parametrize(("change", "kind", "said"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_input_that_would_be_left_out_is_refused(change, kind, said):
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model)
    with pytest.raises(kind, match=said):
        model(**change(padded([4])))


def test_an_adapter_that_came_later_is_not_left_out():
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(TypeError, match="q_proj has not exactly one active adapter"):
        model(**padded([4]))
    model.set_adapter("default")
    batch = padded([4])
    with model.disable_adapter():
        alone = model(**batch).loss
        kernels.remove(model)
        assert alone == pytest.approx(model(**batch).loss.item(), rel=NOISE)


def test_noise_on_the_embeddings_is_that_of_the_plain_path():
    """NEFTune is a hook, which counts rows and tokens."""
    model = with_lora(small_llama(), target_modules="all-linear")

    def noise(module, args, output):
        _, tokens, width = output.shape
        size = 5 / (tokens * width) ** 0.5
        torch.manual_seed(3)
        return output + torch.empty_like(output).uniform_(-size, size)

    model.get_input_embeddings().register_forward_hook(noise)
    batch = padded([11, 7])
    expected = gradients(model, batch)
    kernels.apply(model)
    assert_equal(gradients(model, batch), expected, NOISE)


def test_norms_and_swiglu_of_float16_count_in_32_bits():
    x = torch.randn(3, 64).half()
    x[0, 0] = 900  # as large as Llama 2's own; its square is no float16
    weight, grad = torch.ones(64).half(), torch.randn(3, 64).half()
    expected = ops.norm(x.float(), weight.float(), 1e-5)
    torch.testing.assert_close(ops.norm(x, weight, 1e-5), expected.half())
    wide = [t.float() for t in (grad, x, weight, torch.zeros_like(x))]
    expected = ops.norm_backward(*wide, 1e-5)
    found = ops.norm_backward(grad, x, weight, torch.zeros_like(x), 1e-5)
    torch.testing.assert_close(found, expected.half())


REASONS = {
    "dropout": ({}, {"lora_dropout": 0.1}, "q_proj has LoRA dropout"),
    "DoRA": ({}, {"use_dora": True}, "q_proj has another kind of LoRA"),
    "bias": ({"mlp_bias": True}, {}, "gate_proj has a bias"),
    "head": ({}, {"modules_to_save": ["lm_head"]}, "embeddings, norms or head are"),
    "activation": ({"hidden_act": "gelu"}, {}, "activation is not silu"),
}


@pytest.mark.parametrize(("shape", "lora", "reason"), REASONS.values(), ids=REASONS)
def test_what_is_not_supported_stays_plain(shape, lora, reason, capsys):
    model = with_lora(small_llama(**shape), target_modules="all-linear", **lora)
    model.eval()  # dropout draws, and must draw the same twice
    batch = padded([6, 4])
    expected = gradients(model, batch)
    assert not kernels.apply(model)
    assert f"plain path: {reason}" in capsys.readouterr().out.replace("its ", "")
    assert_equal(gradients(model, batch), expected, 1e-12)


def test_other_kinds_of_adapters_and_weights_stay_plain(capsys):
    adapted = get_peft_model(small_llama(), IA3Config(task_type="CAUSAL_LM"))
    assert not kernels.apply(adapted)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not kernels.apply(get_peft_model(small_llama(), prompt))
    headed = with_lora(small_llama(), target_modules=["q_proj", "lm_head"])
    assert not kernels.apply(headed.requires_grad_(False))
    hooked = small_llama().requires_grad_(False)
    hooked.model.layers[2].register_forward_hook(lambda *_: None)
    assert not kernels.apply(hooked)
    whole = small_llama().requires_grad_(False)
    proj = whole.model.layers[1].self_attn.v_proj
    weight = torch.ones_like(proj.weight, dtype=torch.int8)
    proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert not kernels.apply(whole)
    assert capsys.readouterr().out.splitlines() == [
        "plain path: k_proj has another kind of adapter than LoRA",
        "plain path: its adapter is a prompt, no LoRA",
        "plain path: its norms or head are adapted, or of another kind",
        "plain path: its layers have hooks, which would not be called",
        "plain path: v_proj holds its weight as torch.int8",
    ]


def test_other_models_and_full_fine_tuning_stay_plain(capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=8)
    assert not kernels.apply(GPT2LMHeadModel(small))
    assert not kernels.apply(small_llama())
    assert capsys.readouterr().out.splitlines() == [
        "plain path: the model is no LlamaForCausalLM",
        "plain path: its embeddings, norms or head are trained",
    ]


def test_removing_brings_everything_back():
    model = with_lora(small_llama(), target_modules="all-linear")
    kernels.apply(model, offload=True)
    gradients(model, padded([8]))
    assert layers._buffers
    kernels.remove(model)
    inner = model.get_base_model()
    assert "forward" not in vars(inner) and not layers._buffers
    kernels.remove(model)  # once more does no harm


def test_the_cross_entropy_in_chunks_is_torchs():
    torch.manual_seed(0)
    x = torch.randn(37, 16, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 16, dtype=torch.float64)
    targets = torch.randint(50, (37,))
    expected = torch.nn.functional.cross_entropy(x @ head.T, targets, reduction="sum")
    (grad,) = torch.autograd.grad(expected, x)
    for chunk in (5, 37, 64):
        total, _ = ops.CrossEntropy.apply(x, head, targets, chunk)
        (found,) = torch.autograd.grad(total * 3, x)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(found, 3 * grad)


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [3, 9, 1, 6], [1] * 20 + [60]])
@pytest.mark.parametrize("groups", [4, 2])
def test_attention_is_torchs_with_a_mask_between_documents(lengths, groups):
    torch.manual_seed(0)
    size, heads, total = 8, 4, sum(lengths)
    qkv = torch.randn(total, (heads + 2 * groups) * size, dtype=torch.float64)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    documents = ops.Documents(ends, max(lengths))
    rows = qkv.clone().requires_grad_()
    parts = rows.view(total, -1, size).split([heads, groups, groups], dim=1)
    q, k, v = (t.transpose(0, 1) for t in parts)
    k, v = (t.repeat_interleave(heads // groups, dim=0) for t in (k, v))
    which = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (which[:, None] == which) & torch.ones(total, total).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    expected = expected.transpose(0, 1).flatten(1)
    found, *saved = ops.attention(qkv, heads, groups, documents)
    torch.testing.assert_close(found, expected.detach())
    grad = torch.randn_like(found)
    (wanted,) = torch.autograd.grad(expected, rows, grad)
    back = ops.attention_backward(grad, qkv, heads, groups, documents, found, *saved)
    torch.testing.assert_close(back, wanted)
