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
NEXT_TURN = "\x1e"  # between turns: the harness knows only one turn of the user
# The answer without outer spaces is compared, without case and punctuation.
EXACT = {"ignore_case": True, "ignore_punctuation": True}
SHARE = {"aggregation": "mean", "higher_is_better": True}
BITS = {"aggregation": "bits_per_byte", "higher_is_better": False}
STRIPPED = [{"function": "remove_whitespace"}, {"function": "take_first"}]


def can_ask(row: data.Row) -> bool:
    """Return whether a row's last turn is an answer that a model can be asked for.

    The turns before it are the user's and the assistant's in turn, after a system
    prompt if there is one. Rows with tools are not asked.
    """
    turns = row.get("messages", ())
    if row.get("tools") or any(turn.get("tool_calls") for turn in turns):
        return False
    roles = [turn["role"] for turn in turns]
    roles = roles[roles[:1] == ["system"] :]
    pairs = len(roles) // 2
    return roles == ["user", "assistant"] * pairs != [] and bool(data.answer_of(row))


def write_questions(
    folder: Path,
    rows: Sequence[data.Row],
    tokenizer: Tokenizer,
    name: str = "held_out",
    seed: int = 0,
) -> list[str]:
    """Write two tasks that ask for the last answer of each row; return their names.

    `<name>_write` compares what the model writes with the row's answer: an exact match
    without case and punctuation. `<name>_choose` asks which of four answers is the most
    probable: the row's, or those of three other rows, of the same category if rows have
    one. The system prompt and the turns before come first, which takes the chat format
    and `harness.Model`. Other rows are left out, and a printed line counts them. Raises
    ValueError if none is left.
    """
    good = [row for row in rows if can_ask(row)]
    if len(good) < len(rows):
        print(
            f"{len(rows) - len(good):,} of {len(rows):,} rows are left out: they have "
            "tools, or don't end with an answer to the user"
        )
    if not good:
        raise ValueError(
            "No row ends with an answer to the user, so there is nothing to ask: "
            "choose an instruction dataset."
        )
    # In the chat format, the harness writes nothing between a prompt and a choice.
    gap = generation.before_answer(tokenizer)
    asked = []
    for row, some in zip(good, _choices(good, random.Random(seed)), strict=True):
        prompt = row["messages"][:-1]
        system = [turn["content"] for turn in prompt if turn["role"] == "system"]
        asked.append(
            {
                "system": "".join(system),
                "turns": NEXT_TURN.join(
                    turn["content"] for turn in prompt[len(system) :]
                ),
                "question": prompt[-1]["content"],
                "answer": data.answer_of(row),
                "choices": some,
                "continuations": [gap + one for one in some],
            }
        )
    answers = tokenizer([one["answer"] for one in asked])["input_ids"]
    limit = max(map(len, answers)) + 4
    # Columns by name: a template makes a number of "12", and a list of "[1]".
    both = {"description": "system", "doc_to_text": "turns"}
    write = {
        "output_type": "generate_until",
        **both,
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": limit},
        "filter_list": [{"name": "stripped", "filter": STRIPPED}],
        "metric_list": [{"metric": "exact_match", **EXACT, **SHARE}],
    }
    choose = {
        "output_type": "multiple_choice",
        **both,
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
