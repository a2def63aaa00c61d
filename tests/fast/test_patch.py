"""The fast path computes what transformers and PEFT compute, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.llamas import (
    LORAS,
    SHAPES,
    gradients,
    packed,
    padded,
    small_llama,
    with_lora,
)
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from colab_utils import memory, models
from colab_utils.fast import documents, patch

# transformers computes norms and the loss in float32 whatever the model's dtype is.
RELATIVE_ERROR = 1e-5


def assert_same_gradients(found, expected, rel: float) -> None:
    assert found[0] == pytest.approx(expected[0].item(), rel=rel)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        error = (found[1][name] - grad).norm() / grad.norm()
        assert grad.norm() > 0 and error < rel, (name, error)


@pytest.mark.slow
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_apply_gradients(shape, lora):
    model = with_lora(small_llama(**shape), **lora)
    batch = padded([11, 7, 2, 16])
    expected = gradients(model, batch)
    assert patch.apply(model)
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)
    patch.remove(model)
    assert_same_gradients(gradients(model, batch), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "offload"), [(1, 0), (3, 0), (3, 1), (3, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_apply_with_checkpointing_and_offload(recompute, offload, tied):
    model = with_lora(small_llama(tie_word_embeddings=tied), **LORAS["rank patterns"])
    batch = padded([11, 7])
    patch.apply(model)
    expected = gradients(model, batch)
    patch.apply(model, recompute, offload)
    assert_same_gradients(gradients(model, batch), expected, 1e-12)


def test_apply_checkpointed_layers_keep_only_their_input():
    model, batch = with_lora(small_llama(), target_modules="all-linear"), padded([64])

    def held(recompute: int) -> int:
        patch.apply(model, recompute)
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


def test_apply_packed_rows():
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
    patch.apply(model)
    together = gradients(model, packed(batch), num_items_in_batch=count)
    assert_same_gradients(together, (total, grads), RELATIVE_ERROR)


def test_apply_separates_documents():
    """The loss of a document does not depend on the one before it."""
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model)
    batch = packed(padded([9, 6]))
    batch["labels"][0, :9] = -100
    first = gradients(model, batch)
    batch["input_ids"][0, :9] = 7
    assert_same_gradients(gradients(model, batch), first, 1e-12)


@pytest.mark.slow
def test_apply_offload_in_pieces(monkeypatch):
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = padded([30, 7])
    patch.apply(model)
    expected = gradients(model, batch)
    monkeypatch.setattr("colab_utils.memory.costs.PIECE", 16 * 96 * 8)
    assert patch.apply(model, recompute=3, offload=2)
    assert_same_gradients(gradients(model, batch), expected, 1e-12)


def test_apply_groups_of_documents(monkeypatch):
    """Sorting documents by length, and a kernel call for each group, change nothing."""
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = packed(padded([5, 40, 3, 1, 38, 9]))
    patch.apply(model, recompute=1)
    expected = gradients(model, batch)
    seen = []

    def flatten(*given):
        seen.append(documents.flatten(*given, limit=1))
        return seen[-1]

    monkeypatch.setattr(patch, "flatten", flatten)
    assert_same_gradients(gradients(model, batch), expected, 1e-12)
    assert len(seen[0].groups) > 1


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_apply_nf4_weights(tmp_path, grouped):
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
    assert patch.apply(model, recompute=2)
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)
    assert_same_gradients(gradients(model, packed(batch)), expected, RELATIVE_ERROR)


def test_apply_token_accuracy(model, tokenizer):
    model = copy.deepcopy(model)
    model = with_lora(model, target_modules="all-linear")
    batch = padded([30, 20], vocabulary=1024)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    correct = (logits.argmax(-1) == targets)[targets != -100].float().mean()
    patch.apply(model)
    assert model(**batch).token_accuracy == pytest.approx(correct.item())


def test_apply_batch_without_labels():
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model)
    batch = padded([5]) | {"labels": torch.full((1, 5), -100)}
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0


def test_apply_evaluation_and_generation_stay_transformers():
    model = with_lora(small_llama(torch.float32), target_modules="all-linear")
    batch = padded([8, 8])
    model.eval()
    with torch.no_grad():
        expected = model(**batch)
        patch.apply(model, recompute=3, offload=3)
        found = model(**batch)
        assert torch.equal(found.logits, expected.logits)
        ids = model.generate(input_ids=batch["input_ids"], max_new_tokens=4)
    assert ids.shape == (2, 12)


def test_apply_positions_that_begin_anywhere():
    """A document begins at each row, not only where a position is 0."""
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = padded([8, 8])
    batch["position_ids"] = torch.stack([torch.arange(8), torch.arange(8, 16)])
    expected = gradients(model, batch)
    patch.apply(model)
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)
    del batch["attention_mask"]
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)


@pytest.mark.parametrize("given", [True, False])
def test_apply_padding_on_the_left(given):
    model = with_lora(small_llama(), target_modules="all-linear")
    batch = {name: t.flip(1) for name, t in padded([11, 7, 3]).items()}
    batch["labels"][:, 0] = -100  # nothing predicts the first token of a row
    for row, begin in enumerate((0, 4, 8)):
        batch["labels"][row, begin] = -100
    if given:
        batch["position_ids"] = torch.arange(11).expand(3, 11)
    expected = gradients(model, batch)
    patch.apply(model)
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)


UNSUPPORTED_INPUTS = {
    "a cache": (
        lambda batch: batch | {"past_key_values": DynamicCache()},
        TypeError,
        r"not accept the input past_key_values\. Train",
    ),
    "hidden states": (
        lambda batch: batch | {"output_hidden_states": True},
        TypeError,
        r"not accept the input output_hidden_states\. Train",
    ),
    "a tuple": (
        lambda batch: batch | {"return_dict": False},
        TypeError,
        r"not accept the input return_dict\. Train",
    ),
    "a hole": (
        lambda batch: batch | {"attention_mask": torch.tensor([[1, 0, 1, 1]])},
        ValueError,
        "mask has a hole",
    ),
    "a mask of pairs": (
        lambda batch: batch | {"attention_mask": torch.ones(1, 1, 4, 4)},
        ValueError,
        r"shape \(1, 1, 4, 4\), but the fast path takes \(1, 4\), rows",
    ),
    "no token": (
        lambda batch: batch | {"attention_mask": torch.zeros(1, 4)},
        ValueError,
        "mask leaves no token",
    ),
}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    UNSUPPORTED_INPUTS.values(),
    ids=UNSUPPORTED_INPUTS,
)
def test_forward_unsupported_input(change, kind, message):
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model)
    with pytest.raises(kind, match=message):
        model(**change(padded([4])))


def test_forward_adapter_added_after_apply():
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(
        TypeError, match="q_proj does not have exactly one active adapter"
    ):
        model(**padded([4]))
    model.set_adapter("default")
    batch = padded([4])
    with model.disable_adapter():
        alone = model(**batch).loss
        patch.remove(model)
        assert alone == pytest.approx(model(**batch).loss.item(), rel=RELATIVE_ERROR)


def test_apply_noise_on_the_embeddings():
    """NEFTune is a hook that depends on the shape of the batch."""
    model = with_lora(small_llama(), target_modules="all-linear")

    def noise(module, args, output):
        _, tokens, width = output.shape
        size = 5 / (tokens * width) ** 0.5
        torch.manual_seed(3)
        return output + torch.empty_like(output).uniform_(-size, size)

    model.get_input_embeddings().register_forward_hook(noise)
    batch = padded([11, 7])
    expected = gradients(model, batch)
    patch.apply(model)
    assert_same_gradients(gradients(model, batch), expected, RELATIVE_ERROR)


UNSUPPORTED_MODELS = {
    "dropout": ({}, {"lora_dropout": 0.1}, "q_proj has LoRA dropout"),
    "DoRA": ({}, {"use_dora": True}, "q_proj has another kind of LoRA"),
    "head": ({}, {"modules_to_save": ["lm_head"]}, "the embeddings, norms or head are"),
    "activation": ({"hidden_act": "gelu"}, {}, "the activation is not silu"),
}


@pytest.mark.parametrize(
    ("shape", "lora", "reason"), UNSUPPORTED_MODELS.values(), ids=UNSUPPORTED_MODELS
)
def test_apply_unsupported_model(shape, lora, reason, capsys):
    model = with_lora(small_llama(**shape), target_modules="all-linear", **lora)
    model.eval()  # without dropout, whose draws differ
    batch = padded([6, 4])
    expected = gradients(model, batch)
    assert not patch.apply(model)
    assert f"reference path: {reason}" in capsys.readouterr().out
    assert_same_gradients(gradients(model, batch), expected, 1e-12)


def test_apply_other_adapters_hooks_and_weights(capsys):
    adapted = get_peft_model(small_llama(), IA3Config(task_type="CAUSAL_LM"))
    assert not patch.apply(adapted)
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not patch.apply(get_peft_model(small_llama(), prompt))
    headed = with_lora(small_llama(), target_modules=["q_proj", "lm_head"])
    assert not patch.apply(headed.requires_grad_(False))
    hooked = small_llama().requires_grad_(False)
    hooked.model.layers[2].register_forward_hook(lambda *_: None)
    assert not patch.apply(hooked)
    whole = small_llama().requires_grad_(False)
    proj = whole.model.layers[1].self_attn.v_proj
    weight = torch.ones_like(proj.weight, dtype=torch.int8)
    proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert not patch.apply(whole)
    assert capsys.readouterr().out.splitlines() == [
        "reference path: k_proj has another kind of adapter than LoRA",
        "reference path: the adapter is a prompt, not a LoRA",
        "reference path: the norms or the head have an adapter, or are of another kind",
        "reference path: the layers have hooks, which would not be called",
        "reference path: v_proj holds its weight as torch.int8",
    ]


def test_apply_other_model_and_full_fine_tuning(capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32, n_positions=8)
    assert not patch.apply(GPT2LMHeadModel(small))
    assert not patch.apply(small_llama())
    assert capsys.readouterr().out.splitlines() == [
        "reference path: the fast path knows llama, mistral, qwen2, qwen3, smollm3, "
        "not gpt2",
        "reference path: the embeddings, norms or head are trained",
    ]


def test_remove_restores_the_model():
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model, offload=3)
    inner = model.get_base_model()
    scratch = patch.FastPath.of(inner).scratch
    gradients(model, padded([8]))
    assert scratch.buffers
    patch.remove(model)
    assert "forward" not in vars(inner) and not scratch.buffers
    assert patch.FastPath.of(inner) is None
    patch.remove(model)  # a second time does no harm


def test_apply_to_two_models_shares_no_memory():
    models = [with_lora(small_llama(), target_modules="all-linear") for _ in range(2)]
    expected = gradients(models[0], padded([8]))
    for one in models:
        patch.apply(one)
        gradients(one, padded([8]))
    scratches = [patch.FastPath.of(one.get_base_model()).scratch for one in models]
    assert scratches[0] is not scratches[1]
    patch.remove(models[1])
    assert scratches[0].buffers and not scratches[1].buffers
    assert_same_gradients(gradients(models[0], padded([8])), expected, RELATIVE_ERROR)


@pytest.mark.slow
def test_dequantized_weights_stay_on_a_cpu_until_they_change(monkeypatch):
    model = models.load_model("demo", models.quantization_config())
    model = with_lora(model, target_modules="all-linear").train()
    inner, batch = model.get_base_model(), padded([11, 7])
    with monkeypatch.context() as patched:
        patched.setattr(memory, "free_ram", lambda: 10**6)
        patch.apply(model)
        without = gradients(model, batch)
        assert not patch.FastPath.of(inner).scratch.kept
    patch.apply(model)
    kept = patch.FastPath.of(inner).scratch.kept
    for _ in range(2):
        found = gradients(model, batch)
        assert len(kept) == 4 * model.config.num_hidden_layers
        assert_same_gradients(found, without, 1e-12)
    attention = inner.model.layers[0].self_attn
    weight = attention.o_proj.base_layer.weight
    weight.data = weight.data.flip(0)
    changed = gradients(model, batch)
    weight.copy_(weight.flip(0))
    assert_same_gradients(gradients(model, batch), without, 1e-12)
    assert changed[0] != without[0]
    patch.remove(model)
    assert not kept
