"""Filters: row lengths in tokens, long rows, special tokens, and tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colab_utils.data.schema import MIDDLE, Rejected, Row, kind_of, reject_row
from colab_utils.data.tokens.masking import batches, count, end_of_turn
from colab_utils.data.tokens.pieces import Writer, middle_marks
from colab_utils.data.tokens.rendering import BadTemplate, naming
from colab_utils.data.tokens.tools import texts_of, turns_of, uniform, uses_tools
from colab_utils.data.tokens.vocabulary import any_of, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def token_lengths(rows: list[Row], tokenizer: Tokenizer) -> list[int]:
    """Return each row's number of tokens, as in training.

    A preference row has the length of the longer of its two sequences. Raises
    ValueError with the line of a row that the chat template rejects.
    """
    writer = Writer(tokenizer, spans=False)
    lengths: list[int] = []
    for part in batches(rows, "counting tokens"):
        sequences, numbers = [], []
        for row in part:
            with naming(row):
                found = writer.sequences(row)
            sequences += found
            numbers.append(len(found))
        sizes = iter(count(sequences, tokenizer))
        lengths += [max(next(sizes) for _ in range(number)) for number in numbers]
    return lengths


def drop_special_tokens(
    rows: list[Row], tokenizer: Tokenizer
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those without and those with a special token in their text.

    The tokenizer would read a `</s>` in the text as the real EOS token, and the model
    would learn to stop there. The texts of a row include its tools and their calls.
    """
    ends = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    special = {*special_tokens(tokenizer), *ends}
    if any(kind_of(row) == MIDDLE for row in rows):
        special |= {*middle_marks(tokenizer).texts}
    pattern = any_of(special)
    kept, rejected = [], []
    for row in rows:
        if found := pattern.search("\n".join(_texts(row))):
            rejected.append(reject_row(row, f"contains the special token {found[0]}"))
        else:
            kept.append(row)
    return kept, rejected


def _texts(row: Row) -> list[str]:
    """Return all texts of a row that a model may read."""
    texts = [text for turn in uniform(turns_of(row)) for text in texts_of(turn)]
    texts += texts_of(row.get("tools", []))
    names = {"prefix", "middle", "suffix", "text", "label"}
    return texts + [str(value) for name, value in row.items() if name in names]


def drop_unsupported_tools(
    rows: list[Row], tokenizer: Tokenizer
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those that the chat template can write, and those it can't.

    Only rows that use tools are tried. A printed line reports the number of rejected
    rows, and what to do.
    """
    writer = Writer(tokenizer, spans=False)
    kept, rejected = [], []
    for row in rows:
        if problem := uses_tools(row) and _tool_problem(row, writer):
            rejected.append(reject_row(row, problem))
        else:
            kept.append(row)
    if rejected:
        print(
            f"{len(rejected):,} of {len(rows):,} rows are rejected, because the chat "
            f"template of {writer.chats.name} can't write their tools: set MODEL to a "
            "model whose own template takes tools, such as Qwen2.5 Instruct, and "
            'TEMPLATE to "auto"'
        )
    return kept, rejected


def _tool_problem(row: Row, writer: Writer) -> str | None:
    """Return why the chat template can't write a row with tools, or None if it can."""
    if problem := writer.tool_problem(row):
        return problem
    try:
        writer.sequences(row)
    except BadTemplate as error:
        return f"uses tools, and the model's chat template {error.why}"
    return None


def drop_long(
    rows: list[Row], lengths: list[int], max_tokens: int
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those with at most `max_tokens` tokens and longer ones.

    Raises ValueError when no row is left.
    """
    kept, rejected = [], []
    for row, length in zip(rows, lengths, strict=True):
        if length <= max_tokens:
            kept.append(row)
        else:
            reason = f"too long: {length} tokens, the limit is {max_tokens}"
            rejected.append(reject_row(row, reason))
    if not kept:
        raise ValueError(
            f"No row is left: all {len(rows)} are longer than {max_tokens} tokens (the "
            f"shortest has {min(lengths, default=0)}). Raise MAX_TOKENS."
        )
    return kept, rejected
