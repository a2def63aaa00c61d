"""Generate answers with a chat model: many in batches, or one as a stream.

Read `prompts` (a conversation becomes token ids), `sampling` (logits become a token),
`answer_text` (tokens become text), `decoding` (the prompts that share a batch),
`lookup` (guesses at later tokens) and `answering`, which calls all of these.
`continuing` continues prompts of token ids, which are no conversations.
"""

from colab_utils.generation.answering import answers, stream
from colab_utils.generation.continuing import continuations
from colab_utils.generation.prompts import (
    CONTEXT,
    as_messages,
    before_answer,
    prompt_text,
)

__all__ = [
    "CONTEXT",
    "answers",
    "as_messages",
    "before_answer",
    "continuations",
    "prompt_text",
    "stream",
]
