"""Llama 2's chat template: for transformers (Jinja) and for Ollama (Go).

Both must render a conversation to the same text: edit both, or neither. The command
`make test-export` compares the two.
"""

from __future__ import annotations

import re

# Llama 2's format (Touvron et al. 2023, appendix A.3.3). The `generation` tags enclose
# the assistant's tokens: training computes the loss on these tokens only.
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
{{- bos_token + '[INST] ' + (system if loop.first else '')
    + (message['content'] | trim) + ' [/INST]' -}}
{%- else -%}
{%- generation -%}
{{- ' ' + (message['content'] | trim) + ' ' + eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""

# The same template for Ollama, with two placeholders, BOS and EOS. Ollama writes the
# first BOS token itself. An answer of the model comes back with the spaces that it
# generated, so the template adds spaces only where they are missing.
OLLAMA_TEMPLATE = """\
{{- $later := false }}
{{- range .Messages }}
{{- if eq .Role "user" }}
{{- if $later }}BOS{{ end }}[INST] {{ if and $.System (not $later) }}<<SYS>>
{{ $.System }}
<</SYS>>

{{ end }}{{ .Content }} [/INST]
{{- $later = true }}
{{- else if eq .Role "assistant" }}
{{- if and .Content (eq (slice .Content 0 1) " ") }}{{ .Content }}
{{- else }} {{ .Content }} {{ end }}EOS
{{- end }}
{{- end }}"""

GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


def without_generation_marks(template: str) -> str:
    """Return a template without `generation` tags, which only transformers knows.

    It renders the same text: an empty string replaces each tag, so that the tag's
    whitespace control stays.
    """
    return GENERATION_TAG.sub(r"{{\1 '' \2}}", template)
