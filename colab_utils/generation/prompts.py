"""Turn a prompt into messages, and messages into token ids that fit the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colab_utils.data.tokens.rendering import BadTemplate, Conversations

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Messages = list[dict[str, str]]
CONTEXT = 2048  # tokens of a conversation: 1 GiB of keys and values for Llama 2 7B


def as_messages(prompt: str | Messages, system: str = "") -> Messages:
    """Return a conversation that ends with a user turn, after the system prompt.

    A string becomes the only user turn. Raises ValueError for a value that is neither a
    string nor a conversation, and for a conversation that ends with another turn.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    good = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not good or not all(
        isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")
    ):
        raise ValueError(
            f"{turns!r:.80} is neither a text nor a conversation. A conversation is a "
            'list of {"role": "user" or "assistant", "content": text}.'
        )
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["user"]:
        last = f"a turn of the role {roles[-1]!r}" if roles else "no turn"
        raise ValueError(
            f"A conversation must end with a user turn, but this one has {last} at its "
            "end."
        )
    if system and "system" in roles:
        raise ValueError(
            "There are two system prompts: the argument `system`, and one in the "
            "conversation. Remove one of them."
        )
    return [{"role": "system", "content": system}, *turns] if system else turns


def context_length(model: PreTrainedModel) -> int:
    """Return the maximum number of tokens of prompt and answer together."""
    return getattr(model.config, "max_position_embeddings", CONTEXT)


def prompt_tokens(
    chats: Conversations, messages: Messages, new_tokens: int, context: int
) -> list[int]:
    """Return the token ids of a conversation, with its oldest turns left out if needed.

    The ids leave space in the context for `new_tokens`, or for half the context if that
    is less. The system prompt and the last turns stay. A printed line reports the turns
    left out. Raises ValueError if the chat template rejects the turns, or if the prompt
    is still too long.
    """
    new_tokens = min(new_tokens, context // 2)
    system = [turn for turn in messages[:1] if turn["role"] == "system"]
    turns, dropped = messages[len(system) :], 0
    ids = _tokens(chats, messages)
    while len(ids) + new_tokens > context and dropped + 2 < len(turns):
        dropped += 2
        ids = _tokens(chats, system + turns[dropped:])
    if len(ids) >= context:
        raise ValueError(
            f"The prompt has {len(ids):,} tokens, but prompt and answer together may "
            f"have {context:,}: shorten the prompt."
        )
    if dropped:
        print(
            f"the first {dropped} of {len(turns)} turns are left out: the conversation "
            f"and {new_tokens} new tokens must fit into {context:,} tokens"
        )
    return ids


def prompt_text(tokenizer: Tokenizer, messages: Messages) -> str:
    """Return the text that the model reads: the messages in its chat format.

    It ends where the answer begins. Raises ValueError if the chat template rejects the
    turns.
    """
    return _render(Conversations(tokenizer), messages)


def before_answer(tokenizer: Tokenizer) -> str:
    """Return what the chat template writes between a prompt and its answer.

    " " for Llama 2, "" for most others.
    """
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    chats = Conversations(tokenizer)
    whole, prompt = chats.render(turns), prompt_text(tokenizer, turns[:1])
    before, found, _ = whole.removeprefix(prompt).partition("A")
    return before if found and whole.startswith(prompt) else ""


def _render(chats: Conversations, messages: Messages) -> str:
    try:
        return chats.render(chats.prepare(messages), prompt=True)
    except BadTemplate as error:
        raise ValueError(f"The chat template {error.why}.") from error


def _tokens(chats: Conversations, messages: Messages) -> list[int]:
    """Return the token ids of messages; the template has written the BOS token."""
    text = _render(chats, messages)
    return chats.tokenizer(text, add_special_tokens=False)["input_ids"]
