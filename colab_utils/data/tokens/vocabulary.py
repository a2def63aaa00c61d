"""A tokenizer's special tokens, and what it adds to a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase as Tokenizer


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the special tokens of a tokenizer, with their ids.

    `all_special_tokens` lacks those that have no role, such as Llama 3's `<|eot_id|>`.
    """
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    added = tokenizer.added_tokens_decoder.items()
    return {**{t.content: i for i, t in added if t.special}, **dict(named)}


def added_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return all tokens that no text is cut into by chance, with their ids.

    They are the special tokens and the added ones, except white space.
    """
    added = tokenizer.added_tokens_decoder.items()
    visible = {t.content: i for i, t in added if t.content.strip()}
    return visible | special_tokens(tokenizer)


def token_id(tokenizer: Tokenizer, token: str) -> int | None:
    """Return the id of a token, or None if the vocabulary does not have it."""
    number = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int):
        return None
    return number if tokenizer.convert_ids_to_tokens(number) == token else None


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the tokens, the longest first."""
    by_length = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length)) or r"(?!)")


def check_offsets(tokenizer: Tokenizer) -> None:
    """Raise ValueError if the tokenizer can't return which characters a token holds."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {tokenizer.name_or_path} is a slow one "
            f"({type(tokenizer).__name__}): it does not return which characters a "
            "token holds, so the trained tokens can't be found. Use a model whose "
            "repository has a tokenizer.json."
        )


def surrounding_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after a text.

    Llama 2: [<s>] and [].
    """
    whole = list(tokenizer("a")["input_ids"])
    text = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    return [], []


def adds_space(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer writes a space before a text, as Llama 2's does."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    first = str(tokenizer.convert_ids_to_tokens(ids[:1])[0])
    return first.startswith(("▁", "Ġ"))


def without_added_space(tokenizer: Tokenizer) -> Backend:
    """Return the tokenizer's backend, changed so that it adds no space to a text."""
    from tokenizers import Tokenizer as Backend

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None}
    state["normalizer"] = _without_space(state["normalizer"])
    state["pre_tokenizer"] = _without_space(state["pre_tokenizer"])
    backend: Backend = Backend.from_str(json.dumps(state))
    return backend


def _without_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer that adds no space; None if none is left."""
    if part is None or part["type"] == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            kept = [_without_space(inner) for inner in part[name]]
            return {**part, name: [inner for inner in kept if inner is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return part
