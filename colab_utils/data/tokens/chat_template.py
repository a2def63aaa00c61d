"""Choose a chat template: the model's own, or the course's, which is Llama 2's."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from colab_utils.data.tokens.rendering import BadTemplate, Conversations, probe
from colab_utils.data.tokens.spans import Conversation, end_of_turn, missing_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Llama 2's format (Touvron et al. 2023, appendix A.3.3). The `generation` tags enclose
# the assistant's tokens: training computes the loss on these tokens only. A tokenizer
# without a BOS token renders none.
CHAT_TEMPLATE = """\
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = '<<SYS>>\\n' + (messages[0]['content'] | trim)
    + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0)
    or message['role'] not in ('user', 'assistant') -%}
{{- raise_exception('after an optional system message, roles must alternate: '
    + 'user, assistant, user, ...') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- (bos_token or '') + '[INST] ' + (system if loop.first else '')
    + (message['content'] | trim) + ' [/INST]' -}}
{%- else -%}
{%- generation -%}
{{- ' ' + (message['content'] | trim) + ' ' + eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""

GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


def without_generation_marks(template: str) -> str:
    """Return a template without `generation` tags, which only transformers knows.

    It renders the same text: an empty string replaces each tag, so that the tag's
    whitespace control stays.
    """
    return GENERATION_TAG.sub(r"{{\1 '' \2}}", template)


def choose_template(tokenizer: Tokenizer, name: str, template: str = "auto") -> None:
    """Set the chat template of a tokenizer, and print which one it is and why.

    "auto" keeps the model's own template if training can use it, otherwise the
    tokenizer gets the course's. "own" and "course" force one. An own template that
    lacks the BOS token or the generation prompt gets it. `name` is the model's name.
    Raises ValueError for another value of `template`, for "own" if training can't use
    the model's template, and for "course" if the tokenizer has no EOS token.
    """
    if template not in ("auto", "own", "course"):
        raise ValueError(
            f'TEMPLATE = {template!r}, but it must be "auto", "own" or "course".'
        )
    if template == "course":
        _set_course(tokenizer, name, 'because TEMPLATE = "course"')
    elif not tokenizer.chat_template:
        if template == "own":
            raise ValueError(
                f'TEMPLATE = "own", but {name} has no chat template. Set TEMPLATE to '
                '"auto" or "course" in 01_create_dataset.'
            )
        _set_course(tokenizer, name, f"because {name} has none")
    else:
        try:
            added = _complete(tokenizer)
            end = "".join(_check(tokenizer))
        except BadTemplate as error:
            if template == "own":
                raise
            _set_course(tokenizer, name, f"because the model's own {error.why}")
            return
        saved = tokenizer.chat_template == CHAT_TEMPLATE  # with an adapter, for example
        whose = "the course's, saved with the model" if saved else "the model's own"
        print(f"chat template: {whose}, which ends an answer with {end}{added}")


def _check(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens that end an answer; raise BadTemplate if there are none."""
    chats = Conversations(tokenizer)
    messages = probe("user", "assistant") * 2
    chat = Conversation(chats, messages)
    trained = [chat.text[start:end] for start, end in chat.trained_spans()]
    answer = messages[1]["content"]
    if len(trained) != 2 or not all(answer in part for part in trained):
        raise BadTemplate(chats.name, "does not mark each answer")
    ends = end_of_turn(chats)
    if not ends:
        raise BadTemplate(chats.name, "writes no special token that ends an answer")
    return ends


def _complete(tokenizer: Tokenizer) -> str:
    """Add the BOS token and the generation prompt to a template that lacks them.

    Return what was added, for the printed line. The tokenizer shows whether the model
    expects a BOS token: it then adds one to any text.
    """
    chats = Conversations(tokenizer)
    text, bos = chats.render(probe("user", "assistant")), tokenizer.bos_token
    before, after, added = "", "", ""
    if _adds_bos(tokenizer) and not text.startswith(bos):
        before, added = "{{- bos_token -}}", f"; {bos} is put in front"
    if header := missing_header(chats):
        quoted = json.dumps(header, ensure_ascii=False)
        after = f"{{% if add_generation_prompt %}}{{{{- {quoted} -}}}}{{% endif %}}"
        added += f"; {quoted} is added as the generation prompt"
    if added:
        several = tokenizer.chat_template
        new = before + tokenizer.get_chat_template().removesuffix("\n") + after
        tokenizer.chat_template = (
            {**several, "default": new} if isinstance(several, dict) else new
        )
    return added


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer begins every text with the BOS token."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _set_course(tokenizer: Tokenizer, name: str, reason: str) -> None:
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {name} has no EOS token, so the course's chat template "
            "can't end an answer. Set MODEL to another model."
        )
    tokenizer.chat_template = CHAT_TEMPLATE
    if not _adds_bos(tokenizer):
        tokenizer.bos_token = None  # the model expects none: the template writes none
    print(f"chat template: the course's, in the format of Llama 2, {reason}")
