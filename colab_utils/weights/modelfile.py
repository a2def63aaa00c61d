"""Write a Modelfile, with which Ollama imports a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils.data.chat_template import (
    CHAT_TEMPLATE,
    OLLAMA_TEMPLATE,
    without_generation_marks,
)
from colab_utils.weights.gguf_tokenizer import EOS_IDS

if TYPE_CHECKING:
    from gguf import ReaderField


def write_modelfile(file: Path | str) -> Path:
    """Write Ollama's Modelfile next to a GGUF file: `ollama create NAME -f Modelfile`.

    The course's chat template is written in Ollama's own language, Go's text/template.
    With any other template, Ollama converts the one in the GGUF file, and a printed
    line says so. Decoding is greedy, as in the course's measurements. Raises ValueError
    when the model has no EOS token, or one that a Modelfile can't hold.
    """
    import gguf

    file = Path(file)
    fields = gguf.GGUFReader(file).fields
    lines, stops = [f"FROM ./{file.name}"], [_special_token(fields, "eos", file)]
    if EOS_IDS in fields:
        stops += [_token(fields, i) for i in fields[EOS_IDS].contents()]
    template = fields.get("tokenizer.chat_template")
    if template is None:
        print("Modelfile: no chat template; Ollama sends the model the text as it is")
    elif template.contents() == without_generation_marks(CHAT_TEMPLATE):
        text = OLLAMA_TEMPLATE.replace("BOS", _special_token(fields, "bos", file))
        text = text.replace("EOS", stops[0])
        lines.append(f'TEMPLATE """{text}"""')
        stops.insert(0, "[INST]")
    else:
        print("Modelfile: another chat template; Ollama converts the GGUF file's own")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines.append("PARAMETER temperature 0")
    out = file.with_name("Modelfile")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def _special_token(fields: dict[str, ReaderField], name: str, file: Path) -> str:
    """Return the token that a GGUF file names "eos" or "bos"."""
    if f"tokenizer.ggml.{name}_token_id" not in fields:
        raise ValueError(
            f"{file} names no {name.upper()} token: its tokenizer has none, and "
            "Ollama would not know where a turn ends."
        )
    return _token(fields, fields[f"tokenizer.ggml.{name}_token_id"].contents())


def _token(fields: dict[str, ReaderField], number: int) -> str:
    """Return the token of an id; raise ValueError if a Modelfile can't hold it."""
    token = fields["tokenizer.ggml.tokens"].contents(number)
    if '"""' in token or not token.isprintable():
        raise ValueError(f"A Modelfile cannot hold the token {token!r}.")
    return token


def _quoted(token: str) -> str:
    quotes = '"""' if '"' in token else '"'
    return f"{quotes}{token}{quotes}"
