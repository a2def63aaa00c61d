from __future__ import annotations

import copy
import datetime

import pytest
from helpers.masks import (
    NO_SYSTEM,
    ODD,
    QUIET,
    assert_trained,
    decoded,
    turns,
    with_template,
)
from helpers.templates import FAMILIES, TEMPLATES, tagged
from helpers.tokenizer_kinds import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

from colab_utils import data


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_are_the_answers_and_their_ends(name, system):
    tokenizer = with_template(name)
    answers = ["Hello.", "Paris", "Hello."]
    chat = turns(
        "Hi?", answers[0], "And?", answers[1], "Hi?", answers[2], system=system
    )
    tokens = data.trained_tokens(chat, tokenizer)
    assert_trained(tokens, tokenizer, name, answers)
    text = tokenizer.decode(tokens["input_ids"])
    assert ("Be brief." in text) == (system is not None)
    assert data.end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(
        FAMILIES[name][1]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_are_those_of_the_rendering(name):
    """The token ids are the rendered text's, with no token added or changed."""
    tokenizer = with_template(name)
    chat = turns("Hi?", "Hello.", "And?", "Bye.")
    ids = data.trained_tokens(chat, tokenizer)["input_ids"]
    assert ids == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_tokens_begin_where_the_prompt_ends(name):
    tokenizer = with_template(name)
    tokens = data.trained_tokens(turns("Hi?", "Hello."), tokenizer)
    first = tokens["assistant_masks"].index(1)
    prompt = tokenizer.apply_chat_template(
        turns("Hi?"),
        add_generation_prompt=True,
        return_dict=True,
        enable_thinking=False,
    )
    assert tokens["input_ids"][:first] == prompt["input_ids"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@QUIET
@given(texts=st.lists(ODD, min_size=2, max_size=6), system=st.none() | ODD)
def test_trained_tokens_of_odd_texts(name, texts, system):
    """The mask is the one of transformers for the same template with tags."""
    texts = texts[: len(texts) // 2 * 2]
    if name == "phi3":  # its special tokens hold the spaces after them
        texts = [text.lstrip() for text in texts]
    tokenizer = with_template(name)
    chat = turns(*texts, system=system)
    tokens = data.trained_tokens(chat, tokenizer)
    if system is not None and name in NO_SYSTEM:
        chat = turns(f"{system}\n\n{texts[0]}", *texts[1:])
    reference = copy.deepcopy(tokenizer)
    reference.chat_template = tagged(name)
    wanted = reference.apply_chat_template(
        chat,
        return_dict=True,
        return_assistant_tokens_mask=True,
        enable_thinking=any("</think>" in answer for answer in texts[1::2]),
    )
    assert tokens["input_ids"] == wanted["input_ids"]
    assert tokens["assistant_masks"] == wanted["assistant_masks"]


@pytest.mark.slow
@pytest.mark.parametrize("chat", ["plain", "thinking"])
def test_trained_tokens_of_the_published_qwen3_template(chat):
    """TRL ships Qwen3's own template; the tests' one must render the same."""
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = with_template("qwen3")
    answers = {
        "plain": ["Hello.", "Bye."],
        "thinking": ["<think>\nA\n</think>\n\nHello.", "<think>\nB\n</think>\n\nBye."],
    }[chat]
    messages = turns("Hi?", answers[0], "And?", answers[1], system="Be brief.")
    tokens = data.trained_tokens(messages, tokenizer)
    # Earlier thinking is not in the rendering, so it is not trained. With thinking
    # switched off, the empty block belongs to the prompt.
    thought = "<think>\nB\n</think>\n\n" if chat == "thinking" else ""
    assert decoded(tokens, tokenizer) == [
        "Hello.<|im_end|>",
        f"{thought}Bye.<|im_end|>",
    ]
    tokenizer.chat_template = qwen3_chat_template
    assert data.trained_tokens(messages, tokenizer) == tokens


STUB = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}"


def test_trained_tokens_where_the_prompt_opens_the_thinking():
    """Qwen3's thinking models and DeepSeek R1 open `<think>` in the prompt."""
    tokenizer = with_template("qwen3")
    old = "{%- if add_generation_prompt -%}\n{{- '<|im_start|>assistant\\n' -}}"
    assert TEMPLATES["qwen3"].count(old) == 1
    tokenizer.chat_template = TEMPLATES["qwen3"].replace(old, STUB)
    chat = turns("Hi?", "Hello.", "And?", "<think>\nB\n</think>\n\nBye.")
    assert decoded(data.trained_tokens(chat, tokenizer), tokenizer) == [
        "Hello.<|im_end|>",  # an earlier answer has no <think>
        "B\n</think>\n\nBye.<|im_end|>",
    ]


def test_trained_tokens_where_the_prompt_closes_the_thinking():
    """Qwen3.5 without thinking writes an empty thought into the prompt."""
    tokenizer = with_template("qwen3")
    old = "enable_thinking is defined and enable_thinking is false"
    tokenizer.chat_template = TEMPLATES["qwen3"].replace(old, "true")
    chat = turns("Hi?", "Hello.")
    assert decoded(data.trained_tokens(chat, tokenizer), tokenizer) == [
        "Hello.<|im_end|>"
    ]
    chat = turns("Hi?", "<think>\nB\n</think>\n\nBye.")
    assert decoded(data.trained_tokens(chat, tokenizer), tokenizer) == [
        "B\n</think>\n\nBye.<|im_end|>"
    ]


def test_trained_tokens_at_midnight(monkeypatch):
    """Each rendering of a conversation has the date of the first one."""
    ticks = iter(range(10**6))

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2026, 1, 1) + datetime.timedelta(days=next(ticks))

    monkeypatch.setattr("colab_utils.data.tokens.rendering.datetime", Clock)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    tokenizer = with_template("llama3")
    rows = [{"messages": turns("Hi?", "Hello.", "And?", "Bye."), "line": 1}] * 3
    for tokens in data.tokenize(rows, tokenizer):
        assert decoded(tokens, tokenizer) == ["Hello.<|eot_id|>", "Bye.<|eot_id|>"]
        assert "01 Jan 2026" in tokenizer.decode(tokens["input_ids"])
    assert next(ticks) == 1


@pytest.mark.parametrize("name", sorted(NO_SYSTEM))
def test_tokenize_moves_a_system_message_that_the_template_does_not_take(name, capsys):
    tokenizer = with_template(name)
    rows = [{"messages": turns("Hi?", "Hello.", system="Be brief."), "line": 1}]
    rows += [{"messages": turns("Hi?", "Hello."), "line": 2}]
    first, second = data.tokenize(rows, tokenizer)
    assert capsys.readouterr().out == (
        "the chat template takes no system message: in 1 of 2 rows it stands in front "
        "of the first user turn\n"
    )
    asked = [{"role": "user", "content": "Be brief.\n\nHi?"}, rows[1]["messages"][1]]
    assert first == data.trained_tokens(asked, tokenizer)
    assert second == data.trained_tokens(rows[1]["messages"], tokenizer)


def test_tokenize_takes_a_system_message_where_the_template_does(capsys):
    tokenizer = with_template("llama3")
    data.tokenize([{"messages": turns("Hi?", "Hello.", system="Be brief.")}], tokenizer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("roles", [["system"], ["system", "assistant"], []])
def test_tokenize_moves_no_system_message_into_an_answer(roles):
    tokenizer = with_template("gemma2")
    row = {"messages": [{"role": r, "content": "x"} for r in roles], "line": 4}
    with pytest.raises(ValueError, match=r"row of line 4: .*rejects these messages"):
        data.tokenize([row], tokenizer)


def test_tokenize_without_rows(tokenizer):
    assert data.tokenize([], tokenizer) == []


def test_tokenize_names_a_row_that_the_template_rejects(tokenizer):
    rows = [{"messages": turns("Hi?", "Hello."), "line": 3}]
    rows += [{"messages": turns("Hi?", "Hello.")[::-1], "line": 7}]
    for step in (data.tokenize, data.token_lengths):
        with pytest.raises(ValueError, match=r"row of line 7: .*roles must alternate"):
            step(rows, tokenizer)


def test_tokenize_names_a_row_without_trained_tokens(tokenizer):
    rows = [{"messages": turns("Hi?", "Hello."), "line": 3}]
    rows += [{"messages": turns("Hi?"), "line": 7}]
    with pytest.raises(ValueError, match=r"row of line 7: .* marks none of its tokens"):
        data.tokenize(rows, tokenizer)


def test_trained_tokens_of_a_slow_tokenizer():
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = TEMPLATES["zephyr"]
    with pytest.raises(
        ValueError, match=r"slow one \(ByT5Tokenizer\).*tokenizer\.json"
    ):
        data.trained_tokens(turns("Hi?", "Hello."), tokenizer)
    with pytest.raises(ValueError, match="slow one"):
        data.token_lengths([{"messages": turns("Hi?", "Hello.")}], tokenizer)
    assert data.end_of_turn(tokenizer) == [tokenizer.eos_token_id]


def test_trained_tokens_where_offsets_leave_out_the_space():
    """GPT-2's tokenizers do: the space belongs to the token after it."""
    from tokenizers.processors import ByteLevel

    cut = make_tokenizer("smollm2")
    cut.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    cut.chat_template = "{% for m in messages %}{{ m.role + ':' }}"
    cut.chat_template += "{{ ' ' + m.content + eos_token }}{% endfor %}"
    cut.chat_template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tokens = data.trained_tokens(turns("Hi?", "  Hello."), cut)
    assert decoded(tokens, cut) == ["   Hello.<|im_end|>"]


@pytest.mark.parametrize(
    "template", ["{{ messages }}", "{{ messages[0].content }}", "{{ 1 + }}", "", None]
)
def test_end_of_turn_of_other_templates(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    assert data.end_of_turn(other) == []


@pytest.mark.parametrize("normalized", [True, False])
def test_end_of_turn_of_an_added_token_that_is_not_special(normalized):
    """Llama 2's tokenizer cuts a token that it normalizes into pieces."""
    tokenizer = make_tokenizer("llama2")
    names = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens([AddedToken(name, normalized=normalized) for name in names])
    tokenizer.chat_template = TEMPLATES["chatml"]
    tokens = data.trained_tokens(turns("Hi?", "Hello."), tokenizer)
    assert decoded(tokens, tokenizer) == ["Hello.<|im_end|>"]
    end = [] if normalized else [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert data.end_of_turn(tokenizer) == end


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_tokenize_gives_the_labels_that_trl_makes(make_trainer, tokenizer, packing):
    """TRL masks the same tokens from our columns as from the messages."""
    rows = [
        {"messages": turns("Why?", "Because." * n, "And?", "So.", system="Be brief.")}
        for n in range(1, 30)
    ]
    settings = {"packing": packing, "max_length": 256}
    theirs = make_trainer("lora", rows=rows, **settings)
    tokens = data.tokenize(rows, tokenizer)
    ours = make_trainer("lora", rows=tokens, assistant_only_loss=False, **settings)
    for one, two in zip(
        theirs.get_train_dataloader(), ours.get_train_dataloader(), strict=True
    ):
        assert one.keys() == two.keys()
        assert all((one[name] == two[name]).all() for name in one)
        trained = two["labels"] != -100
        assert trained.any() and not trained.all()
