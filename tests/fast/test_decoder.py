"""Decoders that a model keeps between answers, and models without a static cache."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from helpers.decoding import LENGTHS, assert_decodes
from helpers.llamas import small_llama, with_lora
from peft import LoraConfig

from colab_utils import models
from colab_utils.fast import support
from colab_utils.fast.decoder import (
    Kept,
    ReferenceDecoder,
    borrow_decoder,
    make_decoder,
    release_decoder,
)
from colab_utils.fast.static_cache import StaticDecoder


@pytest.fixture(scope="module")
def fine_tuned_demo():
    model = models.load_model("demo", models.quantization_config())
    return with_lora(model, target_modules="all-linear")


def kept_by(model) -> StaticDecoder | None:
    kept = vars(model.get_base_model()).get(Kept.NAME)
    return kept and kept.decoder


def answer(model, more: int = 4) -> None:
    """Check that a kept decoder computes the model as it is now."""
    with borrow_decoder(model, 32) as decoder:
        assert_decodes(model, decoder, LENGTHS[:1], more)


def replace_a_weight(model):
    layer = model.get_base_model().model.layers[1].mlp.down_proj.base_layer
    layer.weight = torch.nn.Parameter(layer.weight.data * -2)
    return model


def another_rank(model):
    model.delete_adapter("default")
    model.add_adapter("default", LoraConfig(r=1, target_modules=["q_proj", "v_proj"]))
    model.set_adapter("default")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def resized(model):
    model.resize_token_embeddings(260)
    return model


def merged(model):
    model.merge_adapter()
    return model


CHANGES = {
    "the adapter is dropped": lambda model: model.unload(),
    "the adapter is merged": merged,
    "another rank": another_rank,
    "another weight": replace_a_weight,
    "other embeddings": resized,
    "another dtype": lambda model: model.float(),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_borrow_decoder_of_a_changed_model(change):
    model = with_lora(small_llama(), target_modules="all-linear")
    answer(model)
    before = kept_by(model)
    assert before is not None
    answer(model)
    assert kept_by(model) is before
    answer(change(model))


def test_borrow_decoder_of_a_model_with_a_new_adapter():
    model = small_llama()
    answer(model)
    answer(with_lora(model, target_modules="all-linear"))


@pytest.mark.slow
def test_borrow_decoder_nf4_merged_and_unmerged(fine_tuned_demo):
    with borrow_decoder(fine_tuned_demo, 32) as decoder:
        assert_decodes(fine_tuned_demo, decoder, LENGTHS[:1], rel=1e-4)
    fine_tuned_demo.merge_adapter()
    fine_tuned_demo.unmerge_adapter()
    with borrow_decoder(fine_tuned_demo, 32) as decoder:
        assert_decodes(fine_tuned_demo, decoder, LENGTHS[:1], rel=1e-4)


def test_borrow_decoder_twice():
    model = small_llama()
    with borrow_decoder(model, 32) as one, borrow_decoder(model, 32) as other:
        assert one is not other


def test_borrow_decoder_of_a_deleted_model():
    model = small_llama()
    answer(model)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_borrow_decoder_with_a_second_active_adapter():
    """Names and shapes are those of the recorded step, except for the added one."""
    model = with_lora(small_llama(), target_modules="all-linear")
    model.add_adapter("other", LoraConfig(r=4, target_modules="all-linear"))
    with borrow_decoder(model, 32) as decoder:
        assert isinstance(decoder, StaticDecoder)
    model.base_model.set_adapter(["default", "other"])
    with borrow_decoder(model, 32) as decoder:
        assert isinstance(decoder, ReferenceDecoder)


def test_borrow_decoder_adapter_of_the_head_disabled():
    model = with_lora(small_llama(), target_modules=["lm_head"])
    with borrow_decoder(model, 32) as first:
        pass
    with model.disable_adapter(), borrow_decoder(model, 32) as second:
        assert second is not first


def test_release_decoder():
    model = with_lora(small_llama(), target_modules="all-linear")
    answer(model)
    gone = weakref.ref(kept_by(model))
    release_decoder(model)
    assert kept_by(model) is None and gone() is None
    release_decoder(model)  # a second time does no harm
    release_decoder(torch.nn.Linear(1, 1))


def test_borrow_decoder_copies_of_the_model_keep_none():
    """A CUDA graph can't be copied, and a copy has other weights."""
    model = with_lora(small_llama(), target_modules="all-linear")
    answer(model)
    assert kept_by(copy.deepcopy(model)) is None
    assert pickle.loads(pickle.dumps(Kept(kept_by(model)))).decoder is None
    assert kept_by(model) is not None


def norms_adapted():
    from peft import LNTuningConfig, get_peft_model

    return get_peft_model(small_llama(), LNTuningConfig(task_type="CAUSAL_LM"))


def adalora():
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        task_type="CAUSAL_LM", total_step=10, target_modules=["q_proj"]
    )
    return get_peft_model(small_llama(), config)


UNSUPPORTED = {
    "norms that are adapted": (norms_adapted, "the norms have an adapter"),
    "AdaLoRA": (adalora, "another kind of adapter"),
    "DoRA": (lambda: with_lora(small_llama(), use_dora=True), "kind of LoRA"),
    "gelu": (lambda: small_llama(hidden_act="gelu"), "activation is gelu"),
    "dynamic positions": (
        lambda: small_llama(
            rope_parameters={
                "rope_type": "dynamic",
                "factor": 2.0,
                "rope_theta": 10000.0,
            }
        ),
        "RoPE type is dynamic",
    ),
}


@pytest.mark.parametrize(("make", "problem"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_make_decoder_unsupported_model(make, problem, capsys):
    model = make()
    decoder = make_decoder(model, 3, 32)
    assert isinstance(decoder, ReferenceDecoder)
    assert f"reference decoding: {problem}" in capsys.readouterr().out or problem in (
        support.decoding_problem(model)
    )
    assert_decodes(model, decoder)


def test_make_decoder_prompt_adapter():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match=r"prompt, not a LoRA: use model\.generate"):
        make_decoder(get_peft_model(small_llama(), config), 1, 32)
