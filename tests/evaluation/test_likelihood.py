"""Likelihoods from a tree of requests are those of each request alone."""

from __future__ import annotations

import pytest
import torch
from helpers.families import small_model
from helpers.llamas import small_llama, with_lora
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from colab_utils.evaluation import likelihood
from colab_utils.evaluation.likelihood import log_likelihoods, reads_trees

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3")
FAMILIES += ("granite",)
tokens = st.lists(st.integers(3, 6), min_size=1, max_size=9)


def alone(model, context, continuation) -> tuple[float, bool]:
    """Return the likelihood from a forward pass of this request and nothing else."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        logits = model.eval()(ids).logits[0, len(context) - 1 : -1].float()
    wanted = torch.tensor(continuation)
    found = logits.log_softmax(-1)[range(len(wanted)), wanted].sum().item()
    return found, bool((logits.argmax(-1) == wanted).all())


def assert_as_alone(model, requests, room=None):
    found = log_likelihoods(model, requests, room)
    expected = [alone(model, *request) for request in requests]
    assert [one.total for one in found] == pytest.approx([e[0] for e in expected], 1e-4)
    assert [one.greedy for one in found] == [e[1] for e in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_and_shared_examples_are_as_alone(family):
    draw = torch.Generator().manual_seed(0)
    model = small_model(family, torch.float32)
    examples = torch.randint(3, 250, (40,), generator=draw).tolist()
    requests = []
    for _ in range(6):
        question = torch.randint(3, 250, (5,), generator=draw).tolist()
        for length in (1, 2, 2, 4):
            choice = torch.randint(3, 250, (length,), generator=draw).tolist()
            requests.append((examples + question, choice))
    assert reads_trees(model)
    assert_as_alone(model, requests)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_sliding_windows_are_respected(family):
    model = small_model(family, torch.float32, sliding_window=8)
    shared = list(range(3, 33))
    requests = [(shared, [40, 41]), (shared, [50]), (shared[:20], [60, 61, 62])]
    assert_as_alone(model, requests)


@settings(max_examples=2 * settings.default.max_examples // 5, deadline=None)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8), st.integers(1, 40))
def test_any_requests_are_as_alone_in_any_row(requests, room):
    torch.manual_seed(0)
    assert_as_alone(small_llama(torch.float32), requests, room)


def test_greedy_continuation_is_found():
    model = small_llama(torch.float32).eval()
    with torch.inference_mode():
        best = model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax().item()
    found = log_likelihoods(model, [([5, 6, 7], [best]), ([5, 6, 7], [(best + 1) % 9])])
    assert [one.greedy for one in found] == [True, False]


def test_adapter_is_read():
    model = small_llama(torch.float32)
    before = log_likelihoods(model, [([5, 6], [7, 8])])[0].total
    adapted = with_lora(model)
    requests = [([5, 6], [7, 8]), ([5, 6], [9])]
    assert log_likelihoods(adapted, requests)[0].total != pytest.approx(before, 1e-3)
    assert_as_alone(adapted, requests)


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """The number of tokens of each row that a model reads in the test."""
    read, real = [], likelihood._logits

    def record(model, tree, places):
        read.append(len(tree.ids))
        return real(model, tree, places)

    monkeypatch.setattr(likelihood, "_logits", record)
    return read


def test_common_beginnings_are_read_once(sizes):
    question = list(range(3, 53))
    log_likelihoods(small_llama(torch.float32), [(question, [n, 9]) for n in range(4)])
    assert sizes == [50 + 4]


def test_rows_are_longer_where_the_contexts_share_more(sizes):
    model = small_llama(torch.float32, max_position_embeddings=2048)
    draw = torch.Generator().manual_seed(0)
    examples = torch.randint(3, 250, (600,), generator=draw).tolist()
    questions = torch.randint(3, 250, (60, 40), generator=draw).tolist()
    log_likelihoods(model, [(question, [5]) for question in questions])
    assert max(sizes) <= likelihood.CPU_ROW
    sizes.clear()
    log_likelihoods(model, [(examples + question, [5]) for question in questions])
    assert 1700 < max(sizes) <= 3 * 610 and sum(sizes) < 4000


def test_logits_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS", 1000)
    requests = [([3, 4, 5], list(range(6, 30))), ([3, 4], [9, 8, 7]), ([3], [4])]
    assert_as_alone(small_llama(torch.float32), requests)


def test_long_request_loses_its_first_tokens():
    model = small_llama(torch.float32, max_position_embeddings=8)
    # The model reads 8 tokens: all but the last, which no token follows.
    assert_as_alone(model, [([3, 4, 5, 6, 7, 8, 9], [10, 11])])
    long, cut = ([99, 98, 4, 5, 6, 7, 8, 9, 7], [10, 11]), [4, 5, 6, 7, 8, 9, 7]
    found = log_likelihoods(model, [long, (cut, [10, 11])])
    assert found[0] == found[1]


def test_layers_that_ignore_the_mask_read_each_request_alone(capsys):
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert not reads_trees(model)
    assert_as_alone(model, [([3, 4, 5], [6, 7]), ([3, 4, 5], [8])])
    assert "each request is read alone" in capsys.readouterr().out


@pytest.mark.parametrize("request_", [([], [3]), ([3], [])])
def test_empty_request_is_refused(request_):
    with pytest.raises(ValueError, match="Request 2 has no token"):
        log_likelihoods(small_llama(torch.float32), [([3], [4]), request_])
