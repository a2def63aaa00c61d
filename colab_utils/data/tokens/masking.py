"""Decide which tokens of a row are trained, for any kind and any chat template.

In a conversation, the assistant's answers and the tokens that end them are trained.
Everything else is not: the system prompt, the user's turns, results of tools, the
header of an answer (the generation prompt), and what a template writes after the end
of a turn, such as ChatML's newline. An answer of weight 0 is read, but not trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

from colab_utils import runtime
from colab_utils.data.schema import COMPLETION, INSTRUCTION, MIDDLE, kind_of
from colab_utils.data.tokens import spans
from colab_utils.data.tokens.pieces import Ids, Piece, Text, Writer
from colab_utils.data.tokens.rendering import BadTemplate, Conversations, naming
from colab_utils.data.tokens.vocabulary import (
    added_tokens,
    adds_space,
    check_offsets,
    without_added_space,
)

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.data.schema import Message, Row
    from colab_utils.data.tokens.spans import Span

BATCH = 500  # rows that are tokenized at once


class Tokens(TypedDict):
    """Token ids that a model reads, and 1 for each token that is trained, else 0."""

    input_ids: list[int]
    assistant_masks: list[int]


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Return the text of a conversation, as the model reads it in training.

    A system message that the chat template does not take is put in front of the first
    user turn. Raises ValueError if the template rejects the messages.
    """
    conversations = Conversations(tokenizer)
    return conversations.render(conversations.prepare(messages))


def trained_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> Tokens:
    """Return the token ids of a conversation, and which of them are trained.

    {"input_ids": [1, 518, ...], "assistant_masks": [0, 0, ..., 1, 1]}. A system message
    that the chat template does not take is put in front of the first user turn. Raises
    ValueError if the template rejects the messages or can't be used for training.
    """
    text = Writer(tokenizer).conversation(messages, {})
    return encode([[text]], tokenizer)[0]


def encodings(row: Row, tokenizer: Tokenizer) -> list[Tokens]:
    """Return the tokens of a row of any kind, and which of them are trained.

    A preference row has two sequences: its prompt with the chosen answer and with the
    rejected one, each trained as DPO does. All others have one. Of a text to classify
    no token is trained. Raises the errors of `trained_tokens`.
    """
    return encode(Writer(tokenizer).sequences(row), tokenizer)


def tokenize(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Tokens]:
    """Return for each row its token ids, and which of them are trained.

    The rows are conversations, raw texts, or of the kind fill-in-the-middle. Prints a
    line if system messages are put in front of the first user turn. Raises the errors
    of `trained_tokens`, and ValueError for a row without trained tokens or of another
    kind.
    """
    writer = Writer(tokenizer)
    found: list[Tokens] = []
    for part in batches(rows, "tokenizing"):
        sequences = []
        for row in part:
            with naming(row):
                _check_trainable(row)
                sequences += writer.sequences(row)
        found += encode(sequences, tokenizer)
    for row, tokens in zip(rows, found, strict=True):
        if not any(tokens["assistant_masks"]):
            with naming(row):
                raise _untrained(row, writer)
    if writer.moved:
        print(
            f"the chat template takes no system message: in {writer.moved:,} of "
            f"{len(rows):,} rows it stands in front of the first user turn"
        )
    return found


def batches(rows: Sequence[Row], what: str) -> Iterator[Sequence[Row]]:
    """Yield the rows in batches, with a progress bar."""
    for start in runtime.progress(range(0, len(rows), BATCH), what):
        yield rows[start : start + BATCH]


def _check_trainable(row: Row) -> None:
    """Raise ValueError for a row of a kind that `tokenize` does not take."""
    kind = kind_of(row)
    if kind not in (INSTRUCTION, COMPLETION, MIDDLE):
        raise ValueError(
            f"It is a {kind} row, and supervised fine-tuning trains on {INSTRUCTION}, "
            f"{COMPLETION} and {MIDDLE} rows. Use another dataset, or another notebook."
        )


def _untrained(row: Row, writer: Writer) -> ValueError:
    """Return the error for a row without trained tokens."""
    answers = [m for m in row.get("messages", []) if m["role"] == "assistant"]
    if answers and all(turn.get("weight") == 0 for turn in answers):
        return ValueError(
            f"It has answers of weight 0 only ({len(answers)} of them), so there is "
            "nothing to train on. Remove the row, or set a weight to 1."
        )
    return BadTemplate(writer.chats.name, "marks none of its tokens")


def end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that end an answer in the chat template.

    ChatML: [<|im_end|>]. The list is empty if the template writes none, or if it can't
    be used for training.
    """
    if tokenizer.chat_template is None:
        return []
    try:
        ends = spans.end_of_turn(Conversations(tokenizer))
    except ValueError:
        return []
    ids = added_tokens(tokenizer)
    return [ids[token] for token in ends]


def encode(sequences: Sequence[list[Piece]], tokenizer: Tokenizer) -> list[Tokens]:
    """Return the tokens of each sequence of pieces.

    A token that lies partly within a trained span is trained; an added or special token
    is trained if it begins there.
    """
    check_offsets(tokenizer)
    texts = [piece for parts in sequences for piece in parts if isinstance(piece, Text)]
    encoded = _tokenize_texts(texts, tokenizer)
    added = set(added_tokens(tokenizer).values())
    found: list[Tokens] = []
    for parts in sequences:
        ids: list[int] = []
        mask: list[int] = []
        for piece in parts:
            if isinstance(piece, Ids):
                ids += piece.ids
                mask += [int(piece.trained)] * len(piece.ids)
            else:
                tokens = next(encoded)
                ids += tokens.ids
                mask += _mask(tokens.ids, tokens.offsets, piece.trained, added)
        found.append({"input_ids": ids, "assistant_masks": mask})
    return found


def count(sequences: Sequence[list[Piece]], tokenizer: Tokenizer) -> list[int]:
    """Return the number of tokens of each sequence of pieces, fast."""
    check_offsets(tokenizer)
    texts = [piece for parts in sequences for piece in parts if isinstance(piece, Text)]
    sizes = map(len, _tokenize_texts(texts, tokenizer, offsets=False))
    return [
        sum(len(p.ids) if isinstance(p, Ids) else next(sizes) for p in parts)
        for parts in sequences
    ]


def _tokenize_texts(
    texts: Sequence[Text], tokenizer: Tokenizer, offsets: bool = True
) -> Iterator[Encoding]:
    """Yield the tokens of texts; no special token is added to them.

    transformers' own call takes twice as long to turn the tokens into Python's lists.
    """
    usual = tokenizer.backend_tokenizer
    usual.no_truncation()
    usual.no_padding()
    cut = any(text.inside for text in texts) and adds_space(tokenizer)
    backends = {False: usual, True: without_added_space(tokenizer) if cut else usual}
    encoded = {}
    for inside, backend in backends.items():
        found = [text.text for text in texts if text.inside == inside]
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        encoded[inside] = iter(encode(found, add_special_tokens=False))
    return (next(encoded[text.inside]) for text in texts)


def _mask(
    ids: list[int], offsets: list[Span], trained: Sequence[Span], added: set[int]
) -> list[int]:
    """Return 1 for each token of the spans, which are in order, and 0 for others."""
    if not trained:
        return [0] * len(ids)
    mask, i, past = [], 0, 0
    for token, (first, last) in zip(ids, offsets, strict=True):
        # Some tokenizers leave the space before a word out of its offsets.
        begin = first if token in added else min(first, past)
        while i < len(trained) and trained[i][1] <= begin:
            i += 1
        within = i < len(trained) and last > trained[i][0]
        if token in added:
            within = within and begin >= trained[i][0]
        mask.append(int(within))
        past = max(past, last)
    return mask
