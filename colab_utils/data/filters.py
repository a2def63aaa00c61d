"""Filters: row lengths in tokens, long rows, and special tokens in the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.data.masking import check_offsets, end_of_turn
from colab_utils.data.rendering import Conversations, naming, special_tokens
from colab_utils.data.schema import Rejected, Row, reject_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def token_lengths(rows: list[Row], tokenizer: Tokenizer) -> list[int]:
    """Return each row's number of tokens in the chat template, as in training.

    Raises ValueError with the line of a row that the template rejects.
    """
    check_offsets(tokenizer)
    conversations = Conversations(tokenizer)
    lengths: list[int] = []
    for start in runtime.progress(range(0, len(rows), 500), "counting tokens"):
        texts = []
        for row in rows[start : start + 500]:
            with naming(row):
                messages = conversations.prepare(row["messages"])
                texts.append(conversations.render(messages))
        # verbose=False: no warning about long rows, which this function has to find.
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths += map(len, ids)
    return lengths


def drop_special_tokens(
    rows: list[Row], tokenizer: Tokenizer
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those without and those with a special token in their text.

    The tokenizer would read a `</s>` in the text as the real EOS token, and the model
    would learn to stop there.
    """
    ends = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    special = [*dict.fromkeys([*special_tokens(tokenizer), *ends])]
    kept, rejected = [], []
    for row in rows:
        text = "".join(turn["content"] for turn in row["messages"])
        found = [token for token in special if token in text]
        if found:
            rejected.append(reject_row(row, f"contains the special token {found[0]}"))
        else:
            kept.append(row)
    return kept, rejected


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
