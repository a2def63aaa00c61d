"""Data: from raw rows of any source to clean, documented training and test rows.

Read the files in this order. `schema` defines a row of each kind, and `formats` turns
known formats into it. `readers` reads files and the Hub. `loading` loads datasets, and
`saving` saves and reads them. The steps
in between are `filters` (lengths, special tokens), `dedup` (duplicates) and `splitting`
(training and test rows). `chat_template` is the text format that the model reads.
`rendering` writes that text, with `tools` in it, and `spans` finds the answers in it.
`pieces` writes rows of each kind, and `masking` turns them into tokens and marks those
that are trained, with the help of `vocabulary`.
"""

from colab_utils.data.building import build
from colab_utils.data.dedup import drop_exact, duplicate_pairs, near_duplicates
from colab_utils.data.filters import (
    drop_long,
    drop_special_tokens,
    drop_unsupported_tools,
    token_lengths,
)
from colab_utils.data.formats import to_messages, to_row
from colab_utils.data.loading import load, resolve_dataset
from colab_utils.data.masking import (
    Tokens,
    encodings,
    end_of_turn,
    render,
    tokenize,
    trained_tokens,
)
from colab_utils.data.quality import count_reasons, filter_rows, first_reason
from colab_utils.data.saving import (
    check_kind,
    read,
    read_jsonl,
    save,
    write_jsonl,
)
from colab_utils.data.schema import (
    KINDS,
    BadRow,
    Message,
    Rejected,
    Row,
    answer_of,
    kind_of,
    map_texts,
    prompt_of,
    reject_row,
    short_answers,
)
from colab_utils.data.splitting import split
from colab_utils.data.words import normalize, shingles

__all__ = [
    "KINDS",
    "BadRow",
    "Message",
    "Rejected",
    "Row",
    "Tokens",
    "answer_of",
    "build",
    "check_kind",
    "count_reasons",
    "drop_exact",
    "drop_long",
    "drop_special_tokens",
    "drop_unsupported_tools",
    "duplicate_pairs",
    "encodings",
    "end_of_turn",
    "filter_rows",
    "first_reason",
    "kind_of",
    "load",
    "map_texts",
    "near_duplicates",
    "normalize",
    "prompt_of",
    "read",
    "read_jsonl",
    "reject_row",
    "render",
    "resolve_dataset",
    "save",
    "shingles",
    "short_answers",
    "split",
    "to_messages",
    "to_row",
    "token_lengths",
    "tokenize",
    "trained_tokens",
    "write_jsonl",
]
