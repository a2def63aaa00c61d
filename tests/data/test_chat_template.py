from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

QUIET = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Any text without surrogates, the vocabulary's symbol for a space, and the
# angle brackets of special tokens.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<>"))


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a conversation from the texts of user and assistant in turn."""
    roles = ("user", "assistant")
    conversation = [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}] * (system is not None) + conversation


def ids(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)[
        "input_ids"
    ]


# Written out in the format of Llama 2's own code (llama/generation.py,
# chat_completion).
CHATS = {
    "single": (turns("Hi?", "Hello."), "<s>[INST] Hi? [/INST] Hello. </s>"),
    "system": (
        turns("Hi?", "Ahoy.", system="Speak like a pirate."),
        "<s>[INST] <<SYS>>\nSpeak like a pirate.\n<</SYS>>\n\nHi? [/INST] Ahoy. </s>",
    ),
    "several": (
        turns("Hi?", "Ahoy.", "And?", "Arr.", system="Be brief."),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Ahoy. </s>"
        "<s>[INST] And? [/INST] Arr. </s>",
    ),
    "spaces": (turns("  Hi?\n", "\tHello.  "), "<s>[INST] Hi? [/INST] Hello. </s>"),
    "open": (turns("Hi?"), "<s>[INST] Hi? [/INST]"),
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_template_equals_llama_2s_own_format(tokenizer, name):
    messages, expected = CHATS[name]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "user"],
        ["user", "assistant", "assistant"],
        ["user", "system"],
        ["system", "assistant"],
        ["user", "tool"],
    ],
)
def test_chat_template_with_roles_out_of_order(tokenizer, roles):
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(TemplateError, match="roles must alternate"):
        tokenizer.apply_chat_template(messages, tokenize=False)


@QUIET
@given(texts=st.lists(TEXT, min_size=1, max_size=3), system=st.none() | TEXT)
def test_chat_template_marks_exactly_the_answers(tokenizer, texts, system):
    texts_of_turns = [text for answer in texts for text in ("Why?", answer)]
    out = tokenizer.apply_chat_template(
        turns(*texts_of_turns, system=system),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    spans, inside = [], False
    for token, trained in zip(out["input_ids"], out["assistant_masks"], strict=True):
        if trained and not inside:
            spans.append([])
        if trained:
            spans[-1].append(token)
        inside = bool(trained)
    assert len(spans) == len(texts)
    for span, text in zip(spans, texts, strict=True):
        assert span[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(span[:-1]).strip() == text.strip()
    assert out["input_ids"].count(tokenizer.bos_token_id) == len(texts)


@QUIET
@given(question=TEXT, answer=TEXT)
def test_chat_template_prompt_begins_the_trained_row(tokenizer, question, answer):
    prompt = ids(tokenizer, turns(question), add_generation_prompt=True)
    whole = ids(tokenizer, turns(question, answer))
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert whole[: len(prompt)] == prompt


@pytest.mark.slow
def test_chat_template_in_the_trainers_batches(trained, tokenizer):
    trainer, _ = trained["qlora"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert len({len(row["input_ids"]) for row in trainer.train_dataset}) > 1
    for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert (row == tokenizer.bos_token_id).sum() == 1
        assert labels[labels != -100][-1] == tokenizer.eos_token_id
        assert (labels[row == tokenizer.pad_token_id] == -100).all()
