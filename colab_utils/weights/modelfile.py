"""A Modelfile, from which Ollama makes a model of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from colab_utils.data import chat_template
from colab_utils.weights import gguf_tokenizer as vocabulary


def write_modelfile(file: Path) -> Path:
    """Write Ollama's Modelfile beside a GGUF file: `ollama create NAME -f Modelfile`.

    The course's chat template is given in Ollama's own language, Go's text/template; of
    any other Ollama takes what it makes of the GGUF's, which is printed. Answers are
    greedy, as the course measures them. Raises ValueError when no token ends a turn, or
    one that no Modelfile can hold.
    """
    import gguf

    file = Path(file)
    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"]

    def read(number: int) -> str:
        token = tokens.contents(number)
        if '"""' in token or not token.isprintable():
            raise ValueError(f"A Modelfile cannot hold the token {token!r}.")
        return token

    def token(name: str) -> str:
        if f"tokenizer.ggml.{name}_token_id" not in fields:
            raise ValueError(
                f"{file} names no {name.upper()} token: its tokenizer has none, and "
                "Ollama would not know where a turn ends."
            )
        return read(fields[f"tokenizer.ggml.{name}_token_id"].contents())

    template = fields.get("tokenizer.chat_template")
    lines, stops = [f"FROM ./{file.name}"], [token("eos")]
    if vocabulary.ENDS in fields:
        stops += map(read, fields[vocabulary.ENDS].contents())
    if template is None:
        print("Modelfile: no chat template: Ollama gives the model the bare text")
    elif template.contents() == chat_template.without_generation_marks(
        chat_template.CHAT_TEMPLATE
    ):
        text = chat_template.OLLAMA_TEMPLATE
        text = text.replace("BOS", token("bos")).replace("EOS", token("eos"))
        lines.append(f'TEMPLATE """{text}"""')
        stops.insert(0, "[INST]")
    else:
        print("Modelfile: not the course's chat template: Ollama takes the GGUF's")
    for stop in stops:
        quotes = '"""' if '"' in stop else '"'
        lines.append(f"PARAMETER stop {quotes}{stop}{quotes}")
    lines.append("PARAMETER temperature 0")
    out = file.with_name("Modelfile")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out
