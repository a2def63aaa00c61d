"""Chat templates that behave like the published ones, written out for the tests."""

from __future__ import annotations

# Llama 2 chat: <s> before each user turn, the system prompt inside the first one.
LLAMA2 = """\
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
{%- if turn.role == 'user' -%}
{%- set text = (system + turn.content) if loop.first else turn.content -%}
{{- bos_token + '[INST] ' + text.strip() + ' [/INST]' -}}
{%- elif turn.role == 'assistant' -%}
{{- ' ' + turn.content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Llama 3.1 and 3.2: a system turn with today's date in each conversation.
LLAMA3 = """\
{{- bos_token -}}
{%- set today = strftime_now('%d %b %Y') -%}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content | trim -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + today + '\\n\\n'
    + system + '<|eot_id|>' -}}
{%- for turn in turns -%}
{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n'
    + (turn.content | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# ChatML, as SmolLM2 and Qwen2.5 have it: a default system prompt, and a newline after
# each end of a turn.
CHATML = """\
{%- for turn in messages -%}
{%- if loop.first and turn.role != 'system' -%}
{{- '<|im_start|>system\\nBe a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

QWEN25 = """\
{%- if messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>system\\nYou answer questions.<|im_end|>\\n' -}}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' or turn.role == 'assistant'
    or (turn.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# Qwen3: only answers after the last question keep their thinking, and the last answer
# gets an empty one if it has none.
QWEN3 = """\
{%- if messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- set last = namespace(user=0) -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}
{%- elif turn.role == 'assistant' -%}
{%- set text = turn.content -%}
{%- set thought = '' -%}
{%- if '</think>' in text -%}
{%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1] -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > last.user and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- set text = text.lstrip('\\n') -%}
{%- endif -%}
{{- text + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""

# Zephyr: the marks of a turn are ordinary text, and </s> ends every turn.
ZEPHYR = """\
{% for turn in messages %}
{{ '<|' + turn.role + '|>\\n' + turn.content + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# Mistral 7B Instruct v0.1: no system turn, a space after </s>, no generation prompt.
MISTRAL_V1 = """\
{{- bos_token -}}
{%- for turn in messages -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
{%- if turn.role == 'user' -%}
{{- '[INST] ' + turn.content + ' [/INST]' -}}
{%- elif turn.role == 'assistant' -%}
{{- turn.content + eos_token + ' ' -}}
{%- else -%}
{{- raise_exception('only the roles user and assistant are supported') -}}
{%- endif -%}
{%- endfor -%}
"""

# Mistral 7B Instruct v0.3: the system prompt stands in the last turn, and only if that
# is a user's, so that a whole conversation is rendered without it.
MISTRAL_V3 = """\
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{{- bos_token -}}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('after the system prompt, roles must alternate') -}}
{%- endif -%}
{%- if turn.role == 'user' and loop.last and system is defined -%}
{{- '[INST] ' + system + '\\n\\n' + turn.content + '[/INST]' -}}
{%- elif turn.role == 'user' -%}
{{- '[INST] ' + turn.content + '[/INST]' -}}
{%- elif turn.role == 'assistant' -%}
{{- ' ' + (turn.content | trim) + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Gemma 2 refuses a system turn; Gemma 3 puts it in front of the first question.
GEMMA2 = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for turn in messages -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
{%- set role = 'model' if turn.role == 'assistant' else turn.role -%}
{{- '<start_of_turn>' + role + '\\n' + (turn.content | trim) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

GEMMA3 = """\
{{- bos_token -}}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content + '\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate: user, assistant, user, ...') -}}
{%- endif -%}
{{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n'
    + (system if loop.first else '') + (turn.content | trim) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

# Phi-3: where no generation prompt is asked for, the EOS token ends the conversation.
PHI3 = """\
{%- for turn in messages -%}
{{- '<|' + turn.role + '|>\\n' + turn.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}
{%- else -%}{{- eos_token -}}{%- endif -%}
"""

# Vicuna: a text in front, no marks around a turn, and no BOS token.
VICUNA = """\
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{{- messages[0].content + ' ' -}}
{%- set turns = messages[1:] -%}
{%- else -%}
{{- 'A person asks, and a helpful assistant answers. ' -}}
{%- endif -%}
{%- for turn in turns -%}
{%- if turn.role == 'user' -%}{{- 'USER: ' + turn.content + ' ' -}}
{%- else -%}{{- 'ASSISTANT: ' + turn.content + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

TEMPLATES: dict[str, str] = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "chatml": CHATML,
    "qwen25": QWEN25,
    "qwen3": QWEN3,
    "zephyr": ZEPHYR,
    "mistral_v1": MISTRAL_V1,
    "mistral_v3": MISTRAL_V3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "phi3": PHI3,
    "vicuna": VICUNA,
}

# For each template: its family's kind of tokenizer (helpers/tokenizer_kinds.py), and
# the tokens that end an answer.
FAMILIES = {
    "llama2": ("llama2", ["</s>"]),
    "llama3": ("llama3", ["<|eot_id|>"]),
    "chatml": ("smollm2", ["<|im_end|>"]),
    "qwen25": ("qwen2", ["<|im_end|>"]),
    "qwen3": ("qwen3", ["<|im_end|>"]),
    "zephyr": ("llama2", ["</s>"]),
    "mistral_v1": ("llama2", ["</s>"]),
    "mistral_v3": ("mistral_v3", ["</s>"]),
    "gemma2": ("gemma", ["<end_of_turn>"]),
    "gemma3": ("gemma", ["<end_of_turn>"]),
    "phi3": ("phi3", ["<|end|>"]),
    "vicuna": ("llama2", ["</s>"]),
}

BEGIN, END = "{%- generation -%}", "{%- endgeneration -%}"


def _tag(before: str, trained: str, after: str = "''") -> str:
    """Return Jinja that writes a turn, with tags around what is trained on."""
    piece = f"{{{{- {trained} -}}}}"
    answer = f"{BEGIN}{piece}{END}"
    choice = f"{{%- if turn.role == 'assistant' -%}}{answer}{{%- else -%}}{piece}"
    return f"{{{{- {before} -}}}}{choice}{{%- endif -%}}{{{{- {after} -}}}}"


CHATML_HEADER = "'<|im_start|>' + turn.role + '\\n'"
CHATML_TURN = f"{CHATML_HEADER} + turn.content + '<|im_end|>' + '\\n'"
CHATML_TAGS = {
    f"{{{{- {CHATML_TURN} -}}}}": _tag(
        CHATML_HEADER, "turn.content + '<|im_end|>'", "'\\n'"
    )
}
GEMMA_END = "(turn.content | trim) + '<end_of_turn>"
GEMMA_ROLE = "('model' if turn.role == 'assistant' else turn.role)"
LLAMA3_HEADER = "'<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n'"
LLAMA3_TEXT = "(turn.content | trim) + '<|eot_id|>'"
QWEN3_THOUGHT = "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}"
PHI3_HEADER = "'<|' + turn.role + '|>\\n'"
# For each template, the Jinja to replace so that tags enclose each answer and its end.
TAGS: dict[str, dict[str, str]] = {
    "llama2": {
        "{{- ' ' + turn.content.strip() + ' ' + eos_token -}}": _tag(
            "''", "' ' + turn.content.strip() + ' ' + eos_token"
        )
    },
    "llama3": {
        f"{{{{- {LLAMA3_HEADER}\n    + {LLAMA3_TEXT} -}}}}": _tag(
            LLAMA3_HEADER, LLAMA3_TEXT
        )
    },
    "chatml": CHATML_TAGS,
    "qwen25": CHATML_TAGS,
    "qwen3": {
        QWEN3_THOUGHT: (  # without thinking it belongs to the prompt
            "{%- if enable_thinking -%}"
            + f"{BEGIN}{QWEN3_THOUGHT}{END}{{%- else -%}}{QWEN3_THOUGHT}"
            + "{%- endif -%}"
        ),
        "{{- text + '<|im_end|>\\n' -}}": (
            BEGIN + "{{- text + '<|im_end|>' -}}" + END + "{{- '\\n' -}}"
        ),
    },
    "zephyr": {
        "{{ '<|' + turn.role + '|>\\n' + turn.content + eos_token }}\n": (
            _tag(PHI3_HEADER, "turn.content + eos_token", "'\\n'") + "\n"
        )
    },
    "mistral_v1": {
        "{{- turn.content + eos_token + ' ' -}}": _tag(
            "''", "turn.content + eos_token", "' '"
        )
    },
    "mistral_v3": {
        "{{- ' ' + (turn.content | trim) + eos_token -}}": _tag(
            "''", "' ' + (turn.content | trim) + eos_token"
        )
    },
    "gemma2": {
        f"{{{{- '<start_of_turn>' + role + '\\n' + {GEMMA_END}\\n' -}}}}": _tag(
            "'<start_of_turn>' + role + '\\n'", f"{GEMMA_END}'", "'\\n'"
        )
    },
    "gemma3": {
        f"{{{{- '<start_of_turn>' + {GEMMA_ROLE} + '\\n'\n"
        f"    + (system if loop.first else '') + {GEMMA_END}\\n' -}}}}": _tag(
            f"'<start_of_turn>' + {GEMMA_ROLE} + '\\n'\n"
            "    + (system if loop.first else '')",
            f"{GEMMA_END}'",
            "'\\n'",
        )
    },
    "phi3": {
        f"{{{{- {PHI3_HEADER} + turn.content + '<|end|>\\n' -}}}}": _tag(
            PHI3_HEADER, "turn.content + '<|end|>'", "'\\n'"
        )
    },
    "vicuna": {
        "{{- 'ASSISTANT: ' + turn.content + eos_token -}}": _tag(
            "'ASSISTANT:'", "' ' + turn.content + eos_token"
        )
    },
}


def tagged(name: str) -> str:
    """Return a template with `generation` tags around each answer and its end."""
    text = TEMPLATES[name]
    for old, new in TAGS[name].items():
        assert text.count(old) == 1, (name, old)
        text = text.replace(old, new)
    return text
