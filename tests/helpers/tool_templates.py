"""Chat templates that write tools, in the shape of published ones, for the tests.

`«` and `»` stand around what the assistant writes. They become `generation` tags, or
nothing.
"""

from __future__ import annotations

from colab_utils import data

# Llama 3.1 Instruct: the tools stand in the first question, a turn has one call at most
# and then no text, and a result is JSON.
LLAMA31 = """\
{{- bos_token -}}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content | trim -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}
{%- if tools -%}{{- 'Environment: ipython\\n' -}}{%- endif -%}
{{- system + '<|eot_id|>' -}}
{%- for turn in turns -%}
{%- if turn.role == 'tool' -%}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (turn.content | tojson)
    + '<|eot_id|>' -}}
{%- elif 'tool_calls' in turn -%}
{%- if turn.tool_calls | length != 1 -%}
{{- raise_exception('one call a turn') -}}
{%- endif -%}
{%- set call = turn.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
«{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}'
    + '<|eot_id|>' -}}»
{%- else -%}
{{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' -}}
{%- if tools and loop.first -%}
{{- 'Call one of these functions:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson(indent=4) + '\\n\\n' -}}{%- endfor -%}
{%- endif -%}
{%- if turn.role == 'assistant' -%}
«{{- (turn.content | trim) + '<|eot_id|>' -}}»
{%- else -%}
{{- (turn.content | trim) + '<|eot_id|>' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# Hermes and Qwen2.5: the tools stand in the system turn, and results in a user turn
# that several of them share.
HERMES = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system'
    else 'You answer questions.') + '\\n\\n# Tools\\n\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools><|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}
{{- '<|im_start|>user\\n' + turn.content + '<|im_end|>\\n' -}}
{%- elif turn.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}«{{- turn.content or '' -}}
{%- for call in turn.tool_calls or [] -%}
{{- ('\\n' if turn.content or not loop.first else '') + '<tool_call>\\n{"name": "'
    + call.function.name + '", "arguments": ' + (call.function.arguments | tojson)
    + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}»{{- '\\n' -}}
{%- elif turn.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + turn.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# Mistral 7B Instruct v0.3: the tools stand before the last question, so that earlier
# turns are written in another way when it is missing. Ids have nine characters.
MISTRAL_V3 = """\
{%- set last = namespace(user=0) -%}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for turn in messages -%}
{%- if turn.role == 'user' -%}
{%- if tools and loop.index0 == last.user -%}
{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}
{%- endif -%}
{{- '[INST] ' + turn.content + '[/INST]' -}}
{%- elif turn.tool_calls is defined and turn.tool_calls is not none -%}
«{{- '[TOOL_CALLS] [' -}}
{%- for call in turn.tool_calls -%}
{%- if call.id is not defined or call.id | length != 9 -%}
{{- raise_exception('ids have nine characters') -}}
{%- endif -%}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}'
    + ('' if loop.last else ', ') -}}
{%- endfor -%}
{{- ']' + eos_token -}}»
{%- elif turn.role == 'assistant' -%}
«{{- ' ' + (turn.content | trim) + eos_token -}}»
{%- elif turn.role == 'tool' -%}
{%- if turn.tool_call_id is not defined or turn.tool_call_id | length != 9 -%}
{{- raise_exception('ids have nine characters') -}}
{%- endif -%}
{{- '[TOOL_RESULTS] {"content": ' + (turn.content | tojson) + ', "call_id": "'
    + turn.tool_call_id + '"}[/TOOL_RESULTS]' -}}
{%- else -%}
{{- raise_exception('only user, assistant and tool') -}}
{%- endif -%}
{%- endfor -%}
"""

# Qwen3 Coder: an element for each argument.
XML = """\
{%- if tools -%}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for turn in messages -%}
{%- if turn.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}«{{- turn.content or '' -}}
{%- for call in turn.tool_calls or [] -%}
{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' -}}
{%- for name, value in call.function.arguments | items -%}
{{- '<parameter=' + name + '>\\n' + (value if value is string else value | tojson)
    + '\\n</parameter>\\n' -}}
{%- endfor -%}
{{- '</function>\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}»{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# DeepSeek V3: special tokens of their own around a call, and no header before an answer
# that follows a result.
DEEPSEEK = """\
{{- bos_token -}}
{%- if tools -%}{{- tools | tojson -}}{%- endif -%}
{%- set after = namespace(result=false) -%}
{%- for turn in messages -%}
{%- if turn.role == 'tool' -%}
{{- '<|result|>' + turn.content + '<|result_end|>' -}}
{%- set after.result = true -%}
{%- elif turn.role == 'assistant' -%}
{%- if not after.result -%}{{- '<|assistant|>' -}}{%- endif -%}
«{{- turn.content or '' -}}
{%- for call in turn.tool_calls or [] -%}
{{- '<|call|>' + call.function.name + '\\n' + (call.function.arguments | tojson)
    + '<|call_end|>\\n' -}}
{%- endfor -%}
{{- eos_token -}}»
{%- set after.result = false -%}
{%- else -%}
{{- '<|' + turn.role + '|>' + turn.content -}}
{%- set after.result = false -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not after.result -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

DEEPSEEK_TOKENS = ["<|user|>", "<|system|>", "<|assistant|>", "<|result|>"]
DEEPSEEK_TOKENS += ["<|result_end|>", "<|call|>", "<|call_end|>"]
# For each template: its kind of tokenizer, and the tokens that it has besides.
FAMILIES: dict[str, tuple[str, str, list[str]]] = {
    "llama31": (LLAMA31, "llama3", []),
    "hermes": (HERMES, "qwen2", []),
    "mistral_v3": (MISTRAL_V3, "mistral_v3", []),
    "xml": (XML, "qwen2", []),
    "deepseek": (DEEPSEEK, "llama2", DEEPSEEK_TOKENS),
}
ONE_CALL = {"llama31"}  # these write one call a turn, without text

LOOK: data.Message = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Return the tree of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


def plain(name: str) -> str:
    """Return a template without tags."""
    return FAMILIES[name][0].replace("«", "").replace("»", "")


def tagged(name: str) -> str:
    """Return a template with tags around what the assistant writes."""
    text = FAMILIES[name][0].replace("«", "{%- generation -%}")
    return text.replace("»", "{%- endgeneration -%}")


def with_tools(name: str):
    """Return a tokenizer that has a template which writes tools."""
    from transformers import AddedToken

    from helpers.tokenizer_kinds import make_tokenizer

    _, kind, tokens = FAMILIES[name]
    tokenizer = make_tokenizer(kind)
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in tokens]
    )
    tokenizer.chat_template = plain(name)
    return tokenizer


def call(arguments: object, name: str = "look", number: str = "abcdefgh1"):
    """Return a call of a tool."""
    return {
        "id": number,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def tool_row(*answers: data.Message, results: int = 1, **columns: object) -> data.Row:
    """Return a row: a question, then a call, its results and an answer."""
    result = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "maple"}
    first, second = answers
    messages = [
        {"role": "user", "content": "Which tree?"},
        {"role": "assistant", **first},
        *[result] * results,
        {"role": "assistant", **second},
    ]
    return {"messages": messages, "tools": [LOOK], "line": 1, **columns}
