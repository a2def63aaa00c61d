"""Create data: from documents to chunks, questions and answers, and rows.

Read the files in this order. `documents` reads files as text, and `chunking` cuts it.
`prompts` holds every prompt. `writing` sends them to a generator and parses what comes
back: questions and answers, harder questions, better answers, scores. A generator takes
a list of conversations and returns a text for each: `endpoint` asks a server over HTTP,
`colab_ai` asks Colab's own model, and `functools.partial(generation.answers, model,
tokenizer)` asks a loaded model. `answers` keeps what a generator has answered.
"""

from colab_utils.creation.answers import Kept
from colab_utils.creation.chunking import Chunk, chunk
from colab_utils.creation.colab_ai import colab_generator, has_colab_ai
from colab_utils.creation.documents import Document, read
from colab_utils.creation.endpoint import Endpoint
from colab_utils.creation.writing import (
    Generator,
    Messages,
    Pair,
    evolve,
    improve,
    judge,
    reject_low,
    to_rows,
    write,
)

__all__ = [
    "Chunk",
    "Document",
    "Endpoint",
    "Generator",
    "Kept",
    "Messages",
    "Pair",
    "chunk",
    "colab_generator",
    "evolve",
    "has_colab_ai",
    "improve",
    "judge",
    "read",
    "reject_low",
    "to_rows",
    "write",
]
