"""Held-out rows and texts as local tasks of the lm-evaluation-harness.

A task is a YAML file that says how to ask, and a JSONL file with what is asked. The
harness finds both in a folder: `TaskManager(include_path=folder)`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import data, generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

CHOICES = 4
# The answer without outer spaces is compared, without case and punctuation.
EXACT = {"ignore_case": True, "ignore_punctuation": True}
SHARE = {"aggregation": "mean", "higher_is_better": True}
BITS = {"aggregation": "bits_per_byte", "higher_is_better": False}
STRIPPED = [{"function": "remove_whitespace"}, {"function": "take_first"}]


def is_question(row: data.Row) -> bool:
    """Return whether a row is one question and its answer, without a system prompt."""
    turns = [turn["role"] for turn in row.get("messages", ())]
    return turns == ["user", "assistant"] and bool(data.answer_of(row))


def write_questions(
    folder: Path,
    rows: Sequence[data.Row],
    tokenizer: Tokenizer,
    name: str = "held_out",
    seed: int = 0,
) -> list[str]:
    """Write two tasks for rows of a question and an answer; return their names.

    `<name>_write` compares what the model writes with the row's answer: an exact match
    without case and punctuation. `<name>_choose` asks which of four answers is the most
    probable: the row's, or those of three other rows, of the same category if rows have
    one. Other rows are left out, and a printed line counts them. Raises ValueError if
    none is left.
    """
    good = [row for row in rows if is_question(row)]
    if len(good) < len(rows):
        print(
            f"{len(rows) - len(good):,} of {len(rows):,} rows are left out: they are "
            "more than a question and its answer"
        )
    if not good:
        raise ValueError(
            "No row is a question and its answer, so there is nothing to ask: choose "
            "an instruction dataset."
        )
    # In the chat format, the harness writes nothing between a prompt and a choice.
    gap = generation.before_answer(tokenizer)
    asked = [
        {
            "question": data.prompt_of(row),
            "answer": data.answer_of(row),
            "choices": some,
            "continuations": [gap + one for one in some],
        }
        for row, some in zip(good, _choices(good, random.Random(seed)), strict=True)
    ]
    answers = tokenizer([one["answer"] for one in asked])["input_ids"]
    limit = max(map(len, answers)) + 4
    write = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": limit},
        "filter_list": [{"name": "stripped", "filter": STRIPPED}],
        "metric_list": [{"metric": "exact_match", **EXACT, **SHARE}],
    }
    choose = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "continuations",
        "doc_to_target": "{{choices.index(answer)}}",
        "target_delimiter": "" if gap else " ",  # only without a chat template
        "metric_list": [{"metric": "acc", **SHARE}],
    }
    _write(folder, f"{name}_write", asked, write)
    _write(folder, f"{name}_choose", asked, choose)
    return [f"{name}_write", f"{name}_choose"]


def write_texts(folder: Path, texts: Iterable[str], name: str = "texts") -> list[str]:
    """Write a task that measures how many bits a model needs for a byte of the texts.

    Returns its name, in a list. Raises ValueError without a text.
    """
    rows = [{"text": text} for text in texts if text]
    if not rows:
        raise ValueError("There is no text to read: give one or more.")
    task = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte", **BITS}],
    }
    _write(folder, name, rows, task)
    return [name]


def _choices(rows: Sequence[data.Row], draw: random.Random) -> list[list[str]]:
    """Return for each row its answer and up to three others, in random order."""
    answers: dict[str, list[str]] = {}
    for row in rows:
        answers.setdefault(row.get("category", ""), []).append(data.answer_of(row))
    pools = {name: list(dict.fromkeys(found)) for name, found in answers.items()}
    every = list(dict.fromkeys(data.answer_of(row) for row in rows))
    found = []
    for row in rows:
        right, pool = data.answer_of(row), pools[row.get("category", "")]
        pool = pool if len(pool) >= CHOICES else every
        others = [one for one in pool if one != right]
        some = [right, *draw.sample(others, min(CHOICES - 1, len(others)))]
        found.append(draw.sample(some, len(some)))
    return found


def _write(
    folder: Path, name: str, rows: list[dict[str, Any]], task: dict[str, Any]
) -> None:
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
        "test_split": "test",
        **task,
        "metadata": {"version": 1},
    }
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
