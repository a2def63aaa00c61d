"""Compare models of all families in llama.cpp with transformers: `make test-export`."""

from __future__ import annotations

import pytest
import torch
from helpers.checkpoints import make_family
from helpers.llama_cpp import (
    EDGES,
    LlamaCpp,
    assert_close,
    compare,
    pieces,
    render_in_go,
)
from helpers.templates import FAMILIES, TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from hypothesis import given, settings

from colab_utils import demo, weights
from colab_utils.data.tokens.chat_template import choose_template
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.weights.gguf import KINDS

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MODELS = [
    ("llama", "llama2", {}),
    ("llama", "llama3", {"rope_parameters": LLAMA_3_ROPE, "tie_word_embeddings": True}),
    ("llama", "smollm2", {"tie_word_embeddings": True}),
    ("llama", "phi3", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", "llama2", {"sliding_window": 800}),
    ("mistral", "mistral_v3", {"sliding_window": None}),
    ("mistral", "tekken", {"sliding_window": None, "head_dim": 16}),
    ("qwen2", "qwen2", {"tie_word_embeddings": True}),
    ("qwen2", "qwen2_base", {"tie_word_embeddings": False}),
    ("qwen3", "qwen3", {"tie_word_embeddings": True}),
    ("qwen3", "qwen3", {"tie_word_embeddings": False, "head_dim": 64}),
    ("smollm3", "llama3", {"tie_word_embeddings": True}),
    (
        "smollm3",
        "llama3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    ),
]
NAMES = [f"{family}-{tokenizer}-{i}" for i, (family, tokenizer, _) in enumerate(MODELS)]


@pytest.fixture(scope="module", params=MODELS, ids=NAMES)
def exported(request, tmp_path_factory):
    """Return a model's folder and its tokenizer."""
    family, kind, changes = request.param
    tokenizer = make_tokenizer(kind)
    size = len(tokenizer) + 3
    folder = tmp_path_factory.mktemp("models") / f"{family}-{kind}"
    make_family(folder, family, vocab_size=size, **changes)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


def test_answers_of_families(exported):
    folder, tokenizer = exported
    draw = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, len(tokenizer), (length,), generator=draw).tolist()
        for length in (1, 2, 30, 200, 700)
    ]
    for kind in KINDS:
        served = LlamaCpp(weights.write_gguf(folder, kind=kind))
        found = compare(served, folder, kind, prompts, 24)
        assert_close(found, kind)


@pytest.mark.parametrize("kind", ["llama2", "llama3", "smollm2", "qwen2", "qwen3"])
def test_tokens_of_families(kind, tmp_path):
    """llama.cpp does not compose accents (NFC); that is up to the caller."""
    tokenizer = make_tokenizer(kind)
    folder = make_family(tmp_path / "model", "llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    served = LlamaCpp(weights.write_gguf(folder))
    rows = [str(value) for row in demo.questions()[:200] for value in row.values()]
    names = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    normalizer = tokenizer.backend_tokenizer.normalizer

    def same(text: str) -> bool:
        if normalizer and "NFC" in repr(normalizer):
            text = normalizer.normalize_str(text)
        return served.tokenize(text) == tokenizer(text).input_ids

    assert [text for text in [*EDGES, *rows] if not same(text)] == []

    @settings(max_examples=1000, deadline=None)
    @given(pieces(names))
    def check(text):
        assert same(text)

    check()


# --- chat templates ------------------------------------------------------------------

SYSTEM = {"role": "system", "content": 'Be "short".'}
TURNS = [
    {"role": "user", "content": "What is the capital of Peru?"},
    {"role": "assistant", "content": "Lima."},
    {"role": "user", "content": "Et où est\nN'Djamena? {{ x }}"},
    {"role": "assistant", "content": "In Chad, 日本 no."},
    {"role": "user", "content": "Thanks."},
]
CHATS = [TURNS[:n] for n in (1, 3, 5)]
CHATS += [[SYSTEM, *chat] for chat in CHATS]
OTHERS = ("gemma2", "gemma3", "phi3")  # test_modelfile.py compares these in Python


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return where Go keeps what it has compiled."""
    return tmp_path_factory.mktemp("go")


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in OTHERS])
def test_chat_templates_in_ollama_and_llama_cpp(name, tmp_path, cache):
    """Go renders the Modelfile as transformers does, and llama.cpp reads its tokens."""
    tokenizer = make_tokenizer(FAMILIES[name][0])
    tokenizer.chat_template = TEMPLATES[name]
    choose_template(tokenizer, name, "own")  # adds BOS where the template lacks it
    folder = make_family(tmp_path / "model", "llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    file = weights.write_gguf(folder, kind="f16")
    text = weights.write_modelfile(file).read_text(encoding="utf-8")
    template = text.split('TEMPLATE """')[1].split('"""')[0]
    found = render_in_go(template, CHATS, cache)
    chats = Conversations(tokenizer)
    wanted = [chats.render(chats.prepare(chat), prompt=True) for chat in CHATS]
    ids = [tokenizer(t, add_special_tokens=False).input_ids for t in wanted]
    bos = tokenizer.bos_token
    if ids[0][0] == tokenizer.bos_token_id and tokenizer("a").input_ids[0] == ids[0][0]:
        wanted = [text.removeprefix(bos) for text in wanted]  # Ollama writes it
    assert found == wanted
    served = LlamaCpp(file)
    assert [served.tokenize(text) for text in found] == ids
