"""Decoding on a static cache computes what transformers computes."""

from __future__ import annotations

import pytest
import torch
from helpers.decoding import (
    assert_decodes,
    assert_reads_several_tokens,
    assert_rows_leave_and_join,
    random_rows,
)
from helpers.llamas import LORAS, SHAPES, small_llama, with_lora
from peft import LoraConfig

from colab_utils import memory, models
from colab_utils.fast import patch, support
from colab_utils.fast.decoder import make_decoder
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.memory import costs

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}
ROPE_SHAPES = {
    "linear positions": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "Llama 3's positions": {"rope_type": "llama3", **LLAMA3},
}
ALL_SHAPES = SHAPES | {name: {"rope_parameters": r} for name, r in ROPE_SHAPES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("shape", ALL_SHAPES.values(), ids=ALL_SHAPES)
def test_static_decoder_scores(shape, lora):
    model = with_lora(small_llama(**shape), **lora)
    assert support.decoding_problem(model) is None
    decoder = make_decoder(model, 4, 32)
    assert isinstance(decoder, StaticDecoder)
    assert_decodes(model, decoder)
    assert_decodes(model, decoder, [2, 20])  # nothing remains of the first prompts
    # A GPU also steps in unused rows: they begin at 0, to stay inside the cache.
    assert decoder.lengths[2:].tolist() == [0, 0]


def test_static_decoder_rows_leave_and_join():
    model = with_lora(small_llama(), target_modules="all-linear")
    assert_rows_leave_and_join(model, StaticDecoder(model, 4, 32))


@pytest.mark.filterwarnings("error:.*expanded tensors")
@pytest.mark.parametrize("shape", ALL_SHAPES.values(), ids=ALL_SHAPES)
def test_static_decoder_reads_several_tokens(shape):
    model = with_lora(small_llama(**shape), target_modules="all-linear")
    assert_reads_several_tokens(model, StaticDecoder(model, 1, 32))


def test_static_decoder_reads_several_tokens_of_one_row_only():
    model = small_llama()
    decoder = StaticDecoder(model, 2, 16)
    decoder.start(random_rows([3, 3], 0))
    with pytest.raises(ValueError, match="one row, but 2 are"):
        decoder.read([5, 6])


def test_static_decoder_computes_equal_prompts_once(monkeypatch):
    read, model, last_norm = [], small_llama(), StaticDecoder._last_norm

    def note(self, ids, attend):
        read.append(len(ids))
        return last_norm(self, ids, attend)

    monkeypatch.setattr(StaticDecoder, "_last_norm", note)
    a, b = random_rows([5, 4], 0)
    StaticDecoder(model, 4, 16).start([a, b, a, a])
    assert read == [9]


def test_static_decoder_mlp_in_parts(monkeypatch):
    monkeypatch.setattr(costs, "MLP_ROWS", 4)
    model = with_lora(small_llama(), target_modules="all-linear")
    assert_decodes(model, StaticDecoder(model, 3, 32))


@pytest.fixture(scope="module")
def fine_tuned_demo():
    model = models.load_model("demo", models.quantization_config())
    return with_lora(model, target_modules="all-linear")


@pytest.mark.parametrize("whole", [True, False])
def test_static_decoder_nf4_weights(fine_tuned_demo, whole, monkeypatch):
    if not whole:
        monkeypatch.setattr(memory, "free_ram", lambda: 10**6)
    decoder = StaticDecoder(fine_tuned_demo, 3, 32)
    weights = [w for group in decoder.groups for part in group for w in part.weights]
    assert {weight.is_floating_point() for weight in weights} == {whole}
    assert_decodes(fine_tuned_demo, decoder, rel=1e-4)


def test_static_decoder_adapter_disabled_or_merged():
    model = with_lora(small_llama(), target_modules="all-linear")
    with model.disable_adapter():
        assert_decodes(model, StaticDecoder(model, 3, 32))
    model.merge_adapter()
    assert_decodes(model, StaticDecoder(model, 3, 32))
    model.unmerge_adapter()
    assert_decodes(model, StaticDecoder(model, 3, 32))


def test_static_decoder_adapters_of_embeddings_and_head():
    targets = ["q_proj", "embed_tokens", "lm_head"]
    model = with_lora(small_llama(), target_modules=targets)
    assert support.decoding_problem(model) is None
    assert_decodes(model, StaticDecoder(model, 3, 32))


def test_static_decoder_on_the_fast_path_of_training():
    model = with_lora(small_llama(), target_modules="all-linear")
    patch.apply(model)
    assert_decodes(model, StaticDecoder(model, 3, 32))


def test_static_decoder_second_adapter_on_fewer_modules():
    model = with_lora(small_llama(), target_modules="all-linear")
    model.add_adapter("small", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("small")
    assert support.decoding_problem(model) is None
    assert_decodes(model, StaticDecoder(model, 3, 32))


def test_static_decoder_full_cache():
    model = small_llama()
    decoder = StaticDecoder(model, 1, 8)
    with pytest.raises(ValueError, match="9 tokens exceed a cache of 1 x 8"):
        decoder.start(random_rows([9], 0))
    decoder.start(random_rows([8], 0))
    with pytest.raises(ValueError, match="2 prompts of up to 3 tokens exceed a cache"):
        decoder.add(random_rows([3], 0))
    with pytest.raises(ValueError, match="8 tokens is full"):
        decoder.step(torch.tensor([5]))
    decoder.start(random_rows([5], 0))
    with pytest.raises(ValueError, match="4 more tokens exceed a cache of 8"):
        decoder.read([5])


def test_static_decoder_of_a_deleted_model():
    decoder = StaticDecoder(small_llama(), 1, 8)
    with pytest.raises(ReferenceError, match="was deleted: keep a reference"):
        decoder.start(random_rows([4], 0))
