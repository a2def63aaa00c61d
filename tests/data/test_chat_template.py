from __future__ import annotations

import copy
import re

import pytest
from helpers.templates import FAMILIES, TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from colab_utils import data
from colab_utils.data.tokens.chat_template import (
    CHAT_TEMPLATE,
    choose_template,
    without_generation_marks,
)

QUIET = settings(
    deadline=None,
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


# --- choosing a template -------------------------------------------------------------

OLD_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}\n"
)


def choose(kind: str, own: str | dict | None, template: str = "auto"):
    """Return a tokenizer after `choose_template`."""
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = own
    choose_template(tokenizer, f"the-{kind}", template)
    return tokenizer


@pytest.mark.parametrize("kind", ["qwen2", "llama3_base", "llama2", "gemma"])
def test_choose_template_of_a_model_without_one(kind, capsys):
    tokenizer = choose(kind, None)
    assert capsys.readouterr().out == (
        "chat template: the course's, in the format of Llama 2, because "
        f"the-{kind} has none\n"
    )
    assert tokenizer.chat_template == CHAT_TEMPLATE
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    assert bool(bos) == (kind != "qwen2")
    chat = turns("Hi?", "Ahoy.", "And?", "Arr.")
    text = f"{bos}[INST] Hi? [/INST] Ahoy. {eos}{bos}[INST] And? [/INST] Arr. {eos}"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text
    assert data.end_of_turn(tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("how", ["auto", "own"])
def test_choose_template_keeps_the_models_own(how, capsys):
    tokenizer = choose("llama3", TEMPLATES["llama3"], template=how)
    assert tokenizer.chat_template == TEMPLATES["llama3"]
    assert capsys.readouterr().out == (
        "chat template: the model's own, which ends an answer with <|eot_id|>\n"
    )


def test_choose_template_keeps_the_courses_in_a_saved_model(capsys):
    """A model that 02_finetune_qlora trained brings the template of its training."""
    tokenizer = choose("llama3", CHAT_TEMPLATE)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert capsys.readouterr().out == (
        "chat template: the course's, saved with the model, which ends an answer with "
        "<|eot_id|>\n"
    )


def test_choose_template_course_replaces_the_models_own(capsys):
    tokenizer = choose("llama3", TEMPLATES["llama3"], template="course")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert 'because TEMPLATE = "course"' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vicuna", "zephyr"])
def test_choose_template_adds_a_missing_bos_token(name, capsys):
    """Llama and Mistral expect <s>, but these templates do not write it."""
    tokenizer = choose("llama2", TEMPLATES[name])
    assert capsys.readouterr().out.endswith("with </s>; <s> is put in front\n")
    own = make_tokenizer("llama2")
    for more in ({}, {"add_generation_prompt": True}):
        text = own.apply_chat_template(
            turns("Hi?"), chat_template=TEMPLATES[name], tokenize=False, **more
        )
        found = tokenizer.apply_chat_template(turns("Hi?"), tokenize=False, **more)
        assert found == "<s>" + text
    assert (
        data.trained_tokens(turns("Hi?", "Ahoy."), tokenizer)["input_ids"][:2]
        != [tokenizer.bos_token_id] * 2
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_choose_template_gives_bos_once_where_the_tokenizer_adds_one(name):
    kind = FAMILIES[name][0]
    tokenizer = choose(kind, TEMPLATES[name])
    ids = data.trained_tokens(turns("Hi?", "Ahoy."), tokenizer)["input_ids"]
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert (ids[0] == tokenizer.bos_token_id) == (adds or kind == "smollm2")
    assert ids[1] != tokenizer.bos_token_id


def test_choose_template_adds_a_missing_generation_prompt(capsys):
    """Without it, a model would be asked to write `<|im_start|>assistant` itself."""
    tokenizer = choose("smollm2", OLD_CHATML)
    assert capsys.readouterr().out.endswith(
        '; "<|im_start|>assistant\\n" is added as the generation prompt\n'
    )
    chat = turns("Hi?", "Ahoy.")
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == tokenizer.apply_chat_template(
        chat, chat_template=OLD_CHATML, tokenize=False
    )
    prompt = tokenizer.apply_chat_template(
        chat[:1], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    tokens = data.trained_tokens(chat, tokenizer)
    trained = [i for i, t in zip(*tokens.values(), strict=True) if t]
    assert tokenizer.decode(trained) == "Ahoy.<|im_end|>"


def test_choose_template_changes_the_default_of_several():
    several = {"default": OLD_CHATML, "tool_use": "x"}
    tokenizer = choose("smollm2", several)
    assert tokenizer.chat_template["tool_use"] == "x"
    assert "add_generation_prompt" in tokenizer.get_chat_template()


BAD = {
    "{{ messages[0].content }}": "does not write each message exactly once",
    "{{ raise_exception('No.') }}": r"rejects these messages \(No\.\)",
    "{{ 1 + }}": "rejects these messages",
    "{% for m in messages %}{{ m.content }}\n{% endfor %}": (
        "writes no special token that ends an answer"
    ),
    "{% for m in messages %}{{ m.content }}{% generation %}{{ eos_token }}"
    "{% endgeneration %}{% endfor %}": "does not mark each answer",
}


@pytest.mark.parametrize("template", BAD)
def test_choose_template_of_a_template_that_cannot_be_used(template, capsys):
    tokenizer = choose("llama2", template)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert re.search(
        f"the course's.* because the model's own {BAD[template]}",
        capsys.readouterr().out,
    )
    with pytest.raises(ValueError, match=rf"{BAD[template]}.*TEMPLATE = \"course\""):
        choose("llama2", template, template="own")


def test_choose_template_of_several_without_a_default():
    several = {"rag": "x", "tool_use": "x"}
    assert choose("llama2", several).chat_template == CHAT_TEMPLATE
    with pytest.raises(ValueError, match="several without a default"):
        choose("llama2", several, template="own")


def test_choose_template_own_without_one():
    with pytest.raises(ValueError, match="the-llama2 has no chat template"):
        choose("llama2", None, template="own")


def test_choose_template_of_another_name():
    with pytest.raises(ValueError, match="TEMPLATE = 'llama3'"):
        choose("llama2", None, template="llama3")


def test_choose_template_without_an_eos_token():
    tokenizer = make_tokenizer("llama2")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        choose_template(tokenizer, "nameless")


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in FAMILIES.values()}))
def test_choose_template_course_trains_what_transformers_marks(kind):
    tokenizer = choose(kind, None)
    chat = turns("Hi?", "Ahoy, 🦙.", "And?", "Arr.", system="Be brief.")
    marked = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = data.trained_tokens(chat, tokenizer)
    assert tokens == {name: marked[name] for name in tokens}
    bos = tokens["input_ids"].count(tokenizer.bos_token_id)
    assert bos == 0 if tokenizer.bos_token is None else bos >= 2
    # Without the tags, the same tokens are found.
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = without_generation_marks(CHAT_TEMPLATE)
    assert data.trained_tokens(chat, plain) == tokens


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
