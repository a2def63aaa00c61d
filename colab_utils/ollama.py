"""A Modelfile, from which Ollama makes a model of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from colab_utils import models, vocabulary

# The course's chat template for Ollama, which writes the first <s> itself. What the
# model has answered comes back with the spaces that it was trained to write.
TEMPLATE = """\
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


def write_modelfile(file: Path) -> Path:
    """Write Ollama's Modelfile beside a GGUF file: `ollama create NAME -f Modelfile`.

    The course's chat template is given in Ollama's own language, Go's text/template; of
    any other Ollama takes what it makes of the GGUF's, which is printed. Answers are
    greedy, as the course measures them.
    """
    import gguf

    file = Path(file)
    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"]

    def token(name: str) -> str:
        if f"tokenizer.ggml.{name}_token_id" not in fields:
            raise ValueError(
                f"{file} names no {name.upper()} token: its tokenizer has none, and "
                "Ollama would not know where a turn ends."
            )
        return tokens.contents(fields[f"tokenizer.ggml.{name}_token_id"].contents())

    template = fields.get("tokenizer.chat_template")
    lines = [f"FROM ./{file.name}"]
    if template and template.contents() == vocabulary.plain(models.CHAT_TEMPLATE):
        text = TEMPLATE.replace("BOS", token("bos")).replace("EOS", token("eos"))
        lines.append(f'TEMPLATE """{text}"""')
        lines.append('PARAMETER stop "[INST]"')
    else:
        print("Modelfile: not the course's chat template: Ollama takes the GGUF's")
    lines += [f'PARAMETER stop "{token("eos")}"', "PARAMETER temperature 0"]
    out = file.with_name("Modelfile")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out
