"""Write a Modelfile, with which Ollama imports a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import limits
from colab_utils.weights.gguf_tokenizer import EOS_IDS
from colab_utils.weights.go_template import find_parts

if TYPE_CHECKING:
    from gguf import ReaderField
    from transformers import PreTrainedTokenizerFast


def write_modelfile(file: Path | str) -> Path:
    """Write Ollama's Modelfile next to a GGUF file: `ollama create NAME -f Modelfile`.

    The chat template is written in Ollama's own language, Go's text/template, if it
    writes one turn after another. With any other template, Ollama converts the one in
    the GGUF file, and a printed line says so. Generation stops at each token that ends
    a turn. Decoding is greedy, as in the course's measurements. Raises ValueError when
    the model has no EOS token, or one that a Modelfile can't hold.
    """
    import gguf

    file = Path(file)
    fields = gguf.GGUFReader(file).fields
    lines, stops = [f"FROM ./{file.name}"], [_special_token(fields, "eos", file)]
    if EOS_IDS in fields:
        stops += [_token(fields, i) for i in fields[EOS_IDS].contents()]
    if text := _template(fields, file):
        lines.append(f'TEMPLATE """{text}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines.append("PARAMETER temperature 0")
    out = file.with_name("Modelfile")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out


def _template(fields: dict[str, ReaderField], file: Path) -> str | None:
    """Return the chat template in Go, or None; print what is unusual about it."""
    if "tokenizer.chat_template" not in fields:
        print("Modelfile: no chat template; Ollama sends the model the text as it is")
        return None
    tokenizer = _stand_in(fields, file)
    parts = find_parts(tokenizer)
    adds_bos = fields.get("tokenizer.ggml.add_bos_token")
    bos = str(tokenizer.bos_token) if adds_bos and adds_bos.contents() else ""
    text = parts.program(bos) if parts else None
    if not text or '"""' in text:
        print(
            "Modelfile: the chat template does not write one turn after another; "
            "Ollama converts the GGUF file's own"
        )
        return None
    turn = [{"role": "user", "content": "x"}]
    with limits.seconds(10, f"The chat template of {file.name}"):
        dated = tokenizer.apply_chat_template(
            turn, tokenize=False, strftime_now=lambda _: "qxzdate"
        )
    if "qxzdate" in str(dated):
        print("Modelfile: the chat template writes the date; it stays that of today")
    return text


def _stand_in(fields: dict[str, ReaderField], file: Path) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has only the GGUF file's template and special tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    named = {
        f"{name}_token": _special_token(fields, name, file)
        for name in ("bos", "eos")
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        chat_template=fields["tokenizer.chat_template"].contents(),
        **named,
    )


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
