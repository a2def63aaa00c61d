"""Write a tokenizer into a GGUF file: tokens, their types, and scores or merges."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import limits
from colab_utils.data.tokens.chat_template import without_generation_marks
from colab_utils.weights.gguf_pretokenizer import find_name
from colab_utils.weights.stops import stop_tokens

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from transformers import PreTrainedTokenizerFast

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
EOS_IDS = "tokenizer.ggml.eos_token_ids"  # the key that Ollama reads


def write_tokenizer(writer: GGUFWriter, model: Path, size: int) -> None:
    """Add a model folder's tokenizer to a GGUF file; the model has `size` embeddings.

    llama.cpp supports BPE over characters with a fallback to bytes (Llama 2), and BPE
    over bytes with some rules for cutting text (Llama 3, Qwen, SmolLM, Mistral Nemo).
    Raises ValueError for any other tokenizer.
    """
    tokenizer = _load(model)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = state["model"]
    if bpe["type"] != "BPE":
        raise ValueError(f"The tokenizer is {bpe['type']}: only BPE is exported.")
    tokens = _tokens(state, size)
    types = _types(state, tokens, tokenizer)
    merges = bpe["merges"]
    if bpe["byte_fallback"]:
        _check_bytes(bpe)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_space_prefix(state, tokenizer))
    else:
        _check_normalizer(state)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(find_name(tokenizer.backend_tokenizer))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(writer, tokenizer, size)
    stops = [i for i in stop_tokens(model, tokenizer) if i < size]
    _add_eos_ids(writer, stops, tokenizer)


def _load(model: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model folder, which must have a tokenizer.json."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((model / f"tokenizer.{end}").is_file() for end in ("json", "model")):
        raise FileNotFoundError(
            f"{model} holds no tokenizer: tokenizer.json is missing. Write it there: "
            f"models.load_tokenizer('BASE MODEL').save_pretrained('{model}')"
        )
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            "The tokenizer has no tokenizer.json, and only that file is exported."
        )
    return tokenizer


def _tokens(state: dict[str, Any], size: int) -> list[str]:
    """Return the token of each id below `size`; a [PAD] token for an unused id."""
    tokens = {i: token for token, i in state["model"]["vocab"].items()}
    if max(tokens) >= size:
        raise ValueError(
            f"The tokenizer has ids up to {max(tokens)}, the model has {size} "
            "embeddings: this is not the model's tokenizer."
        )
    tokens |= {entry["id"]: entry["content"] for entry in state["added_tokens"]}
    if extra := [token for i, token in tokens.items() if i >= size]:
        print(f"left out (the model has {size:,} embeddings): {', '.join(extra)}")
    found = [tokens.get(i, f"[PAD{i}]") for i in range(size)]
    if len(set(found)) < size:
        twice = next(token for token in found if found.count(token) > 1)
        raise ValueError(f"The tokenizer has the token {twice!r} twice.")
    return found


def _types(state: dict[str, Any], tokens: list[str], tokenizer: Tokenizer) -> list[int]:
    """Return llama.cpp's type of each token; print those that it treats differently."""
    from gguf import TokenType

    vocab, added = state["model"]["vocab"], state["added_tokens"]
    special = {entry["id"]: entry["special"] for entry in added}
    fallback = state["model"]["byte_fallback"]
    types = []
    for i, token in enumerate(tokens):
        if i == tokenizer.unk_token_id:
            kind = TokenType.UNKNOWN
        elif i in special:
            kind = TokenType.CONTROL if special[i] else TokenType.USER_DEFINED
        elif token not in vocab:
            kind = TokenType.UNUSED
        elif fallback and BYTE.fullmatch(token):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        types.append(int(kind))
    if strict := [
        entry["content"]
        for entry in added
        if entry["lstrip"] or entry["rstrip"] or entry["single_word"]
    ]:
        print(f"llama.cpp ignores lstrip, rstrip and single_word of {strict}")
    return types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return scores with which llama.cpp merges in the order of the list of merges.

    llama.cpp merges the pair whose token has the highest score. It merges any pair that
    forms a token; transformers merges only the pairs of its list. The results differ if
    a pair forms a token and is not in the list. SentencePiece's lists hold every pair;
    the demo's list does not. `make test-export` compares the demo's tokens in llama.cpp
    and transformers on thousands of texts.
    """
    last = -float(len(merges))
    scores: dict[str, float] = {}
    for rank, pair in enumerate(merges):
        scores.setdefault("".join(pair), -float(rank))
    return [scores.get(token, last) for token in tokens]


def _check_bytes(bpe: dict[str, Any]) -> None:
    """Raise ValueError unless a tokenizer can fall back to bytes as Llama 2's does."""
    missing = [b for b in range(256) if f"<0x{b:02X}>" not in bpe["vocab"]]
    if missing:
        raise ValueError(
            f"The tokenizer falls back to bytes, but lacks {len(missing)} of their 256 "
            f"tokens (the first is <0x{missing[0]:02X}>)."
        )
    if bpe.get("ignore_merges"):
        raise ValueError("The tokenizer ignores merges, but llama.cpp follows them.")


def _space_prefix(state: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Return whether text gets a space before its first word (add_space_prefix)."""
    normalizer, pre = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if not pre and steps == [{"type": "Prepend", "prepend": "▁"}, replace]:
        return True
    if not pre and steps == [replace]:
        return False
    metaspace = pre.get("type") == "Metaspace" and pre.get("replacement") == "▁"
    if steps or not metaspace or pre.get("split", True):
        raise ValueError(
            "The tokenizer treats spaces in a way that llama.cpp does not support: "
            f"normalizer {normalizer}, pre_tokenizer {pre}."
        )
    if pre["prepend_scheme"] == "never":
        return False
    # "first" adds a space before the first word of a text; llama.cpp would also add one
    # after each special token. In training, a template that begins with a special token
    # gets no space, so llama.cpp must add none.
    prefix = not _begins_with_bos(tokenizer)
    print(
        f"add_space_prefix: {str(prefix).lower()}, because the chat template begins "
        + ("with no special token" if prefix else f"with {tokenizer.bos_token}")
    )
    return prefix


def _begins_with_bos(tokenizer: Tokenizer) -> bool:
    if not (tokenizer.chat_template and tokenizer.bos_token):
        return False
    turn = [{"role": "user", "content": "x"}]
    with limits.seconds(10, "The chat template"):
        text = str(tokenizer.apply_chat_template(turn, tokenize=False))
    return text.startswith(tokenizer.bos_token)


def _check_normalizer(state: dict[str, Any]) -> None:
    """Print a line about NFC, which changes almost no text; raise on all others."""
    kind = (state["normalizer"] or {}).get("type")
    if kind == "NFC":
        print("llama.cpp does not normalize text: compose its accents (NFC) yourself")
    elif kind:
        raise ValueError(
            f"The tokenizer has a normalizer ({kind}), and llama.cpp has none for "
            "byte-level tokenizers."
        )


def _add_special_tokens(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Add the special tokens that have an embedding, and the chat template."""
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < size:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:  # of several templates, the default one
        template = tokenizer.get_chat_template()
        writer.add_chat_template(without_generation_marks(template))


def _add_eos_ids(writer: GGUFWriter, stops: list[int], tokenizer: Tokenizer) -> None:
    """Add the tokens that end an answer, in addition to the tokenizer's EOS token.

    llama.cpp reads two more, the end of a turn and the end of a message. Ollama reads a
    list.
    """
    others = [i for i in stops if i != tokenizer.eos_token_id]
    for number, name in zip(others, ("eot", "eom"), strict=False):
        getattr(writer, f"add_{name}_token_id")(number)
    if others:
        writer.add_array(EOS_IDS, others)
