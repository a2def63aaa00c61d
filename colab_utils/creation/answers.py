"""Keep a generator's answers in a file, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from colab_utils import runtime
from colab_utils.creation.writing import Generator, Messages, call


class Kept:
    """A generator that reuses the answers that earlier runs stored in a file.

    `key` says what else decides an answer: the generator's name, its model and its
    parameters. `batch` conversations go to the generator in one call, and `workers`
    calls run at the same time. Each answer is in the file before the next call begins:
    a run that is killed loses only the calls that are running. An empty answer is not
    kept, so that the next run asks again.
    """

    def __init__(
        self,
        generator: Generator,
        file: Path,
        key: Mapping[str, Any],
        batch: int = 1,
        workers: int = 1,
    ) -> None:
        self.generator, self.file, self.key = generator, file, dict(key)
        self.batch, self.workers = batch, workers
        self.kept = _read(file)

    def __call__(self, conversations: list[Messages]) -> list[str]:
        """Return an answer to each conversation; the same one is asked only once.

        An error of the generator ends the run. The answers before it are kept.
        """
        names = [self._name(messages) for messages in conversations]
        new = dict(zip(names, conversations, strict=True))
        new = {name: turns for name, turns in new.items() if name not in self.kept}
        print(f"answers: {len(names) - len(new):,} kept, {len(new):,} to ask")
        answers = dict(self.kept)
        batches = [
            list(new)[i : i + self.batch] for i in range(0, len(new), self.batch)
        ]
        pool = ThreadPoolExecutor(self.workers)
        try:
            calls = [pool.submit(self._ask, {n: new[n] for n in b}) for b in batches]
            done = as_completed(calls)
            for one in runtime.progress(done, "asking", total=len(calls)):
                answers |= one.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return [answers[name] for name in names]

    def _name(self, messages: Messages) -> str:
        what = json.dumps([self.key, messages], sort_keys=True, default=str)
        return hashlib.sha256(what.encode()).hexdigest()

    def _ask(self, conversations: dict[str, Messages]) -> dict[str, str]:
        texts = call(self.generator, list(conversations.values()))
        answers = dict(zip(conversations, texts, strict=True))
        kept = {name: text for name, text in answers.items() if text}
        _append(self.file, kept)
        self.kept |= kept
        return answers


def _read(file: Path) -> dict[str, str]:
    """Return the answers by name; a line that a killed run left torn is skipped."""
    found: dict[str, str] = {}
    lines = file.read_bytes().splitlines() if file.exists() else []
    torn = 0
    for line in filter(None, lines):
        try:
            one = json.loads(line)
            found[one["name"]] = one["answer"]
        except (ValueError, KeyError, TypeError):
            torn += 1
    if torn:
        print(f"{file.name}: {torn} of {len(lines)} lines are torn, and are skipped")
    return found


def _append(file: Path, answers: Mapping[str, str]) -> None:
    """Append a line for each answer in one write.

    A line also begins with a newline: the line before may be torn. One write to a file
    that is open for appending keeps the lines of several processes apart.
    """
    lines = (json.dumps({"name": n, "answer": a}) for n, a in answers.items())
    data = "".join(f"\n{line}\n" for line in lines).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        while data:  # a write is only split if the disk is full or a signal comes
            data = data[os.write(target, data) :]
    finally:
        os.close(target)
