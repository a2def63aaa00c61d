"""Data: from raw rows of any source to clean, documented training and test rows.

Read in this order. `schema` defines a row of each kind. `files` reads raw rows from
files and the Hub, `shapes` turns them into rows of a kind, and `loading` does both.
`curation` filters rows by rules, and `filters` by their tokens. `repeats` finds rows
that repeat others, and `splitting` draws the test rows. `saving` writes a dataset and
reads it again, and `describing` writes its card. `large` does all of this for datasets
that are larger than the memory. `tokens` writes rows as the tokens that a model reads,
and marks those that are trained.
"""

from colab_utils.data.curation import contamination, dataset_rules, quality, selection
from colab_utils.data.curation.quality import count_reasons, filter_rows, first_reason
from colab_utils.data.filters import (
    drop_long,
    drop_special_tokens,
    drop_unsupported_tools,
    token_lengths,
)
from colab_utils.data.large.building import build
from colab_utils.data.loading import load, resolve_dataset
from colab_utils.data.repeats.dedup import drop_exact, duplicate_pairs, near_duplicates
from colab_utils.data.repeats.words import normalize, shingles
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
from colab_utils.data.shapes.converting import convert, middles, pair_scored
from colab_utils.data.shapes.formats import to_messages, to_row
from colab_utils.data.splitting import split
from colab_utils.data.tokens.masking import (
    Tokens,
    encodings,
    end_of_turn,
    render,
    tokenize,
    trained_tokens,
)

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
    "contamination",
    "convert",
    "count_reasons",
    "dataset_rules",
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
    "middles",
    "near_duplicates",
    "normalize",
    "pair_scored",
    "prompt_of",
    "quality",
    "read",
    "read_jsonl",
    "reject_row",
    "render",
    "resolve_dataset",
    "save",
    "selection",
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
