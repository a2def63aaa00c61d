"""Vectors of texts and losses of answers, compared with one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colab_utils import data, evaluation, models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base():
    return models.load_model("demo").eval()


def test_embeddings_are_the_means_of_the_middle_layer(base, tokenizer):
    texts = ["Paris", "The capital of France is Paris.", "", "A b c d e."]
    found = evaluation.embeddings(base, tokenizer, texts)
    assert found.shape == (4, base.config.hidden_size)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = base(input_ids=ids, output_hidden_states=True).hidden_states[3]
        assert np.allclose(vector, states[0].mean(0).numpy(), atol=1e-4)


def test_difficulty_is_the_loss_with_and_without_the_prompt(base, tokenizer, demo_rows):
    rows = [{**row, "line": n} for n, row in enumerate(demo_rows[:5])]
    found = evaluation.difficulty(base, tokenizer, rows)
    for i, row in enumerate(rows):
        given = evaluation.score(base, tokenizer, [row]).loss
        assert found.loss[i] == pytest.approx(given, abs=1e-4)
    row = data.tokenize(rows[:1], tokenizer)[0]
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    answer = [token for token, trained in pairs if trained]
    assert tokenizer.decode(answer).startswith(data.answer_of(rows[0]))
    ids = torch.tensor([[tokenizer.bos_token_id, *answer]])
    with torch.no_grad():
        loss = base(input_ids=ids, labels=ids).loss.item()
    assert found.alone[0] == pytest.approx(loss, abs=1e-4)
    assert np.allclose(found.ifd, found.loss / found.alone)
