"""Rows of each kind as tokens: what a model reads, and what is trained of it."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace

import pytest
from helpers.masks import ODD, QUIET, decoded, turns, with_template
from helpers.templates import FAMILIES
from helpers.tokenizer_kinds import FAMILIES as KINDS
from helpers.tokenizer_kinds import make_tokenizer
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AddedToken

from colab_utils import data
from colab_utils.data.tokens.pieces import middle_marks

TEXTS = ["Lima is a town.", "  two\n\tlines ", "🦙é", "x"]


def with_tokens(kind: str, *tokens: str):
    """Return a tokenizer of a kind that also has these tokens."""
    tokenizer = make_tokenizer(kind)
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in tokens]
    )
    return tokenizer


def trained_text(tokens: data.Tokens, tokenizer) -> str:
    """Return the trained text as it continues other text, with all its spaces."""
    pairs = zip(*tokens.values(), strict=True)
    ids = [token for token, trained in pairs if trained]
    end = tokenizer.eos_token
    text = tokenizer.decode([tokenizer.eos_token_id, *ids])
    assert text.startswith(end)
    return text.removeprefix(end)


def normal(text: str, kind: str) -> str:
    """Return a text as the tokenizer's normalizer has it."""
    return unicodedata.normalize("NFC", text) if kind.startswith("qwen") else text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_completion_is_the_text_with_bos_and_eos(kind, text):
    """TRL tokenizes the text with EOS at its end, and trains all of it."""
    tokenizer = make_tokenizer(kind)
    (tokens,) = data.encodings({"text": text, "line": 1}, tokenizer)
    assert tokens["input_ids"] == tokenizer(text + tokenizer.eos_token)["input_ids"]
    bos = int(bool(KINDS[kind].prefix))
    mask = [0] * bos + [1] * (len(tokens["input_ids"]) - bos)
    assert tokens["assistant_masks"] == mask


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_classification_is_the_text_and_nothing_is_trained(kind, text):
    tokenizer = make_tokenizer(kind)
    row = {"text": text, "label": "good", "line": 1}
    (tokens,) = data.encodings(row, tokenizer)
    assert tokens["input_ids"] == tokenizer(text)["input_ids"]
    assert not any(tokens["assistant_masks"])


# --- fill-in-the-middle ---------------------------------------------------------------

MIDDLE = {"prefix": "def f(x):\n    ", "middle": "return x", "suffix": "\n\nf(1)\n"}
OWN_MARKS = {
    "code_llama": ("llama2", ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"], "▁<EOT>"),
    "starcoder": (
        "smollm2_base",
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        "<|endoftext|>",
    ),
    "qwen_coder": (
        "qwen2",
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        "<|endoftext|>",
    ),
    "codegemma": (
        "gemma",
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        "<eos>",
    ),
    "deepseek_coder": (
        "llama3_base",
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        "<|end_of_text|>",
    ),
}


@pytest.mark.parametrize("family", sorted(OWN_MARKS))
def test_middle_with_the_marks_of_a_family(family):
    kind, marks, end = OWN_MARKS[family]
    tokenizer = with_tokens(kind, *marks)
    (tokens,) = data.encodings({**MIDDLE, "line": 1}, tokenizer)
    numbers = tokenizer.convert_tokens_to_ids([*marks[:3], end])
    first, second, third, last = numbers
    ids = tokens["input_ids"]
    start = [tokenizer.bos_token_id] if KINDS[kind].prefix else []
    assert ids[: len(start) + 1] == [*start, first]
    assert ids[-1] == last and middle_marks(tokenizer).end == last
    places = [ids.index(number) for number in (first, second, third)]
    assert places == sorted(places)
    # Only the middle and its end are trained.
    assert tokens["assistant_masks"] == [0] * (places[2] + 1) + [1] * (
        len(ids) - places[2] - 1
    )
    parts = [
        trained_text({"input_ids": part, "assistant_masks": [1] * len(part)}, tokenizer)
        for part in (ids[places[0] + 1 : places[1]], ids[places[1] + 1 : places[2]])
    ]
    assert parts[0].removeprefix(" ") == MIDDLE["prefix"]
    assert parts[1] == MIDDLE["suffix"]  # without the space that a text begins with
    found = trained_text(tokens, tokenizer)
    assert found == MIDDLE["middle"] + end.replace("▁", " ")


def test_middle_without_marks_has_them_as_text():
    """A notebook that trains on such rows adds the marks as tokens."""
    tokenizer = make_tokenizer("llama2")
    row = {**MIDDLE, "line": 1}
    (plain,) = data.encodings(row, tokenizer)
    assert middle_marks(tokenizer).ids == ()
    added = with_tokens("llama2", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert len(middle_marks(added).ids) == 3
    (short,) = data.encodings(row, added)
    assert len(short["input_ids"]) < len(plain["input_ids"])
    for tokens, which in ((plain, tokenizer), (short, added)):
        assert which.decode(tokens["input_ids"]).replace("<s>", "") == (
            "<fim_prefix> def f(x):\n    <fim_suffix>\n\nf(1)\n<fim_middle>return x</s>"
        )


@pytest.mark.parametrize("kind", sorted(KINDS))
@QUIET
@given(prefix=ODD, middle=ODD, suffix=ODD)
def test_middle_of_odd_texts(kind, prefix, middle, suffix):
    """The trained tokens hold the middle to the letter, and its end.

    Rows with a special token are left out, as in 01: some of these tokens take the
    spaces after them.
    """
    tokenizer = make_tokenizer(kind)
    row = {"prefix": prefix, "middle": middle, "suffix": suffix, "line": 1}
    assume(data.drop_special_tokens([row], tokenizer)[0])
    (tokens,) = data.encodings(row, tokenizer)
    assert len(tokens["input_ids"]) == len(tokens["assistant_masks"])
    end = tokenizer.convert_ids_to_tokens(middle_marks(tokenizer).end)
    assert trained_text(tokens, tokenizer) == normal(middle, kind) + end
    assert data.token_lengths([row], tokenizer) == [len(tokens["input_ids"])]


def test_middle_needs_an_eos_token():
    tokenizer = make_tokenizer("llama2")
    tokenizer.eos_token = None
    for row in ({**MIDDLE, "line": 3}, {"text": "Lima", "line": 3}):
        with pytest.raises(ValueError, match=r"line 3: The tokenizer of .* has no EOS"):
            data.tokenize([row], tokenizer)


# --- preference -----------------------------------------------------------------------


def preference(prompt: list, chosen: str, rejected: str) -> data.Row:
    """Return a preference row with one answer each."""
    answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "line": 1}


def test_preference_is_the_prompt_with_each_answer():
    tokenizer = with_template("chatml")
    row = preference(turns("Hi?"), "Hello.", "No.")
    chosen, rejected = data.encodings(row, tokenizer)
    # As in DPO, all that follows the prompt is trained.
    assert decoded(chosen, tokenizer) == ["Hello.<|im_end|>\n"]
    assert decoded(rejected, tokenizer) == ["No.<|im_end|>\n"]
    assert data.token_lengths([row], tokenizer) == [len(chosen["input_ids"])]


def test_preference_with_a_system_message_that_the_template_does_not_take():
    tokenizer = with_template("gemma2")
    row = preference(turns("Hi?", system="Be brief."), "Hello.", "No.")
    chosen, _ = data.encodings(row, tokenizer)
    assert decoded(chosen, tokenizer) == ["Hello.<end_of_turn>\n"]
    assert "Be brief.\n\nHi?" in tokenizer.decode(chosen["input_ids"])


def test_preference_of_several_turns():
    """All turns after the prompt are trained, as in DPO."""
    tokenizer = with_template("chatml")
    row = preference(turns("Hi?"), "Hello.", "No.")
    row["chosen"] = turns("Hello.", "And?", "Bye.")
    for turn, role in zip(
        row["chosen"], ["assistant", "user", "assistant"], strict=True
    ):
        turn["role"] = role
    chosen, _ = data.encodings(row, tokenizer)
    (text,) = decoded(chosen, tokenizer)
    assert text.startswith("Hello.<|im_end|>\n") and text.endswith("Bye.<|im_end|>\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"qwen3"}))
def test_preference_is_what_trl_trains(name):
    """The masks are DPO's, and the token ids also those of the reward trainer."""
    from datasets import Dataset
    from trl import DPOTrainer, RewardTrainer

    texts = ["Hi?", "é 🦙", "two\n\nlines", "</think> a.b", "[INST] [/INST]", "  x"]
    rows = [
        preference(turns(question), texts[i - 1], texts[i - 2])
        for i, question in enumerate(texts)
    ]
    tokenizer = with_template(name)
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None)
    dpo, reward = (
        trainer._prepare_dataset(
            SimpleNamespace(_is_vlm=False),
            Dataset.from_list(rows),
            tokenizer,
            settings,
            "train",
        )
        for trainer in (DPOTrainer, RewardTrainer)
    )
    for row, theirs, whole in zip(rows, dpo, reward, strict=True):
        ours = data.encodings(row, tokenizer)
        for tokens, answer in zip(ours, ("chosen", "rejected"), strict=True):
            prompt, reply = theirs["prompt_ids"], theirs[f"{answer}_ids"]
            assert tokens["input_ids"] == prompt + reply == whole[f"{answer}_ids"]
            assert tokens["assistant_masks"] == [0] * len(prompt) + [1] * len(reply)


# --- all kinds ------------------------------------------------------------------------


def rows_of(texts: tuple[str, ...]) -> list[data.Row]:
    """Return a row of each kind."""
    one, two, three = texts
    return [
        {"messages": [*turns(one, two, one), *turns(one, three)[1:]], "line": 1},
        {"text": one, "line": 2},
        {"text": one, "label": two, "line": 3},
        {"prefix": one, "middle": two, "suffix": three, "line": 4},
        preference(turns(one), two, three),
    ]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@QUIET
@given(texts=st.tuples(ODD, ODD, ODD))
def test_odd_texts_of_all_kinds(name, texts):
    tokenizer = with_template(name)
    rows = rows_of(texts)
    found = [data.encodings(row, tokenizer) for row in rows]
    assert list(map(len, found)) == [1, 1, 1, 1, 2]
    for tokens in (tokens for row in found for tokens in row):
        assert len(tokens["input_ids"]) == len(tokens["assistant_masks"])
        assert all(isinstance(number, int) for number in tokens["input_ids"])
    trained = [any(any(t["assistant_masks"]) for t in row) for row in found]
    assert trained == [True, True, False, True, True]
    assert data.token_lengths(rows, tokenizer) == [
        max(len(tokens["input_ids"]) for tokens in row) for row in found
    ]
    whole = tokenizer(texts[0] + tokenizer.eos_token)["input_ids"]
    assert found[1][0]["input_ids"] == whole
    assert found[2][0]["input_ids"] == tokenizer(texts[0])["input_ids"]
    assert data.tokenize([rows[0], rows[1], rows[3]], tokenizer) == [
        found[i][0] for i in (0, 1, 3)
    ]


def test_raw_texts_need_no_chat_template():
    tokenizer = make_tokenizer("llama2")
    rows = rows_of(("Hi?", "Hello.", "No."))[1:4]
    lengths = data.token_lengths(rows, tokenizer)
    assert lengths == [
        len(data.encodings(row, tokenizer)[0]["input_ids"]) for row in rows
    ]
    assert data.drop_special_tokens(rows, tokenizer) == (rows, [])
    assert data.drop_unsupported_tools(rows, tokenizer) == (rows, [])


@pytest.mark.parametrize(("index", "kind"), [(2, "classification"), (4, "preference")])
def test_tokenize_names_a_kind_that_sft_does_not_train_on(tokenizer, index, kind):
    row = rows_of(("Hi?", "Hello.", "No."))[index]
    match = rf"line {row['line']}: It is a {kind} row, and supervised fine-tuning"
    with pytest.raises(ValueError, match=match):
        data.tokenize([row], tokenizer)
