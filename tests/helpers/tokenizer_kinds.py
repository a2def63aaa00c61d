"""Small tokenizers with the rules and special tokens of published families.

Each is a BPE trained on the demo's sentences. How it cuts text, its special tokens, and
its BOS, EOS, unk and pad tokens are those that the family's authors ship.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    trainers,
)
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from colab_utils import demo
from colab_utils.demo.sentences import paragraph

MERGED = 300  # tokens of two or more characters or bytes
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD, REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERNS = {
    "llama3": rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{SIGNS}|{REST}",
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+"
        rf"|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}"
    ),
}


@dataclass(frozen=True)
class Family:
    """How a family's tokenizer cuts text, and its special tokens."""

    backend: Callable[[list[str]], Tokenizer]
    first: list[str]  # special tokens with the lowest ids
    last: list[str] = field(default_factory=list)  # those after the vocabulary
    rstrip: bool = False  # whether those swallow the spaces after them
    plain: list[str] = field(default_factory=list)  # added after them, not special
    prefix: str = ""  # the token that starts every text
    named: dict[str, str] = field(default_factory=dict)  # bos_token=..., ...


def _train(tokenizer: Tokenizer, special: list[str], **settings: Any) -> Tokenizer:
    draw = random.Random(0)
    text = [s for f in demo.facts() for _ in range(3) for s in paragraph(f, draw)]
    trainer = trainers.BpeTrainer(
        special_tokens=[AddedToken(token, special=True) for token in special],
        show_progress=False,
        **settings,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _bytes(cut: list[pre.PreTokenizer], special: list[str], **model: Any) -> Tokenizer:
    """Return a BPE over bytes, as Llama 3's and GPT-2's."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    alphabet = pre.ByteLevel.alphabet()
    size = len(special) + len(alphabet) + MERGED
    return _train(tokenizer, special, vocab_size=size, initial_alphabet=alphabet)


def _by_pattern(name: str, **model: Any) -> Callable[[list[str]], Tokenizer]:
    split = pre.Split(Regex(PATTERNS[name]), "isolated")
    cut = [split, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    return functools.partial(_bytes, cut, **model)


def _smollm2(special: list[str]) -> Tokenizer:
    digits = pre.Digits(individual_digits=True)
    return _bytes([digits, pre.ByteLevel(add_prefix_space=False)], special)


def _qwen2(special: list[str]) -> Tokenizer:
    tokenizer = _by_pattern("qwen2")(special)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _characters(special: list[str]) -> Tokenizer:
    """Return a BPE over characters with a fallback to bytes, as sentencepiece's.

    Merges cross no space and join no digits. Only the training needs this rule; the
    finished tokenizer has no pre-tokenizer.
    """
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    digits = pre.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre.Sequence([pre.Metaspace(), digits])
    alphabet = ["▁", *map(chr, range(33, 127))]
    size = len(special) + len(BYTES) + len(alphabet) + MERGED
    _train(tokenizer, special + BYTES, vocab_size=size, initial_alphabet=alphabet)
    state = json.loads(tokenizer.to_str())  # the bytes are ordinary tokens
    added = [t for t in state["added_tokens"] if t["content"] not in BYTES]
    state["added_tokens"] = added
    tokenizer = Tokenizer.from_str(json.dumps(state))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return tokenizer


def _llama2(special: list[str]) -> Tokenizer:
    tokenizer = _characters(special)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


def _mistral(special: list[str]) -> Tokenizer:
    tokenizer = _characters(special)
    tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def _gemma(special: list[str]) -> Tokenizer:
    tokenizer = _characters(special)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _reserved(first: int, last: int) -> list[str]:
    return [f"<|reserved_special_token_{i}|>" for i in range(first, last)]


SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXT = ["<|begin_of_text|>", "<|end_of_text|>"]
HEADERS = ["<|start_header_id|>", "<|end_header_id|>"]
LLAMA_3 = [*TEXT, *_reserved(0, 2), "<|finetune_right_pad_id|>", *_reserved(2, 3)]
LLAMA_3 += [*HEADERS, "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *_reserved(3, 9)]
LLAMA_3_0 = [*TEXT, *_reserved(0, 4), *HEADERS, *_reserved(4, 5), "<|eot_id|>"]
LLAMA_3_0 += _reserved(5, 9)
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLLM2 = [*CHATML, "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
SMOLLM2 += ["<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>"]
SMOLLM2 += [f"<jupyter_{s}>" for s in ("start", "text", "code", "output", "script")]
SMOLLM2 += ["<empty_output>"]
QWEN2 = [*CHATML, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"]
QWEN2 += ["<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"]
QWEN2 += ["<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
QWEN2_PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"]
QWEN2_PLAIN += ["<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
QWEN3_PLAIN = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
MISTRAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
TOOLS = ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
MISTRAL_V3 = [*MISTRAL, "[TOOL_CALLS]", *TOOLS]
MISTRAL_V3 += [f"[control_{i}]" for i in range(8, 16)]
TEKKEN = [*MISTRAL, *TOOLS, "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
TEKKEN += [f"<SPECIAL_{i}>" for i in range(14, 20)]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>"]
GEMMA += ["<end_of_turn>"]
PHI_3 = ["<|endoftext|>", "<|assistant|>", *(f"<|placeholder{i}|>" for i in (1, 2, 3))]
PHI_3 += ["<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|user|>"]


def _llama3(special: list[str], eos: str) -> Family:
    named = {"bos_token": TEXT[0], "eos_token": eos}
    cut = _by_pattern("llama3", ignore_merges=True)
    return Family(cut, [], special, prefix=TEXT[0], named=named)


def _chatml_names(eos: str, pad: str) -> dict[str, str]:
    return {"eos_token": eos, "pad_token": pad}


def _smollm2_names(bos: str, eos: str) -> dict[str, str]:
    names = {"bos_token": bos, "eos_token": eos, "pad_token": eos}
    return names | {"unk_token": "<|endoftext|>"}


FAMILIES = {
    "llama2": Family(  # and Mistral 7B v0.1
        _llama2, ["<unk>", "<s>", "</s>"], prefix="<s>", named=SENTENCEPIECE
    ),
    "llama3": _llama3(LLAMA_3, "<|eot_id|>"),  # 3.1 and 3.2 Instruct
    "llama3_base": _llama3(LLAMA_3, "<|end_of_text|>"),
    "llama3_0": _llama3(LLAMA_3_0, "<|eot_id|>"),  # has no <|finetune_right_pad_id|>
    "smollm2": Family(
        _smollm2, SMOLLM2, named=_smollm2_names("<|im_start|>", "<|im_end|>")
    ),
    "smollm2_base": Family(
        _smollm2, SMOLLM2, named=_smollm2_names("<|endoftext|>", "<|endoftext|>")
    ),
    "qwen2": Family(
        _qwen2,
        [],
        QWEN2,
        plain=QWEN2_PLAIN,
        named=_chatml_names("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen2_base": Family(
        _qwen2,
        [],
        QWEN2,
        plain=QWEN2_PLAIN,
        named=_chatml_names("<|endoftext|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        _qwen2,
        [],
        QWEN2,
        plain=QWEN2_PLAIN + QWEN3_PLAIN,
        named=_chatml_names("<|im_end|>", "<|endoftext|>"),
    ),
    "phi3": Family(
        _llama2,
        ["<unk>", "<s>", "</s>"],
        PHI_3,
        rstrip=True,
        prefix="<s>",
        named={
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "pad_token": "<|endoftext|>",
        },
    ),
    "mistral_v3": Family(_mistral, MISTRAL_V3, prefix="<s>", named=SENTENCEPIECE),
    "tekken": Family(
        _by_pattern("tekken", ignore_merges=True),
        TEKKEN,
        prefix="<s>",
        named=SENTENCEPIECE,
    ),
    "gemma": Family(
        _gemma,
        GEMMA,
        plain=[f"<unused{i}>" for i in range(4)],
        prefix="<bos>",
        named={
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
    ),
}


@functools.cache
def _backend(kind: str) -> str:
    """Return a family's tokenizer as JSON; it is trained once in a test process."""
    family = FAMILIES[kind]
    tokenizer = family.backend(family.first)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, rstrip=family.rstrip) for t in family.last]
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in family.plain]
    )
    if family.prefix:
        start = TemplateProcessing(
            single=f"{family.prefix} $A",
            pair=f"{family.prefix} $A {family.prefix} $B",
            special_tokens=[(family.prefix, tokenizer.token_to_id(family.prefix))],
        )
        own = tokenizer.post_processor
        tokenizer.post_processor = Sequence([own, start]) if own else start
    return tokenizer.to_str()


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a new tokenizer of a family in `FAMILIES`, without a chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(kind)),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        **FAMILIES[kind].named,
    )
