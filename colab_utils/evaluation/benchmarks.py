"""Public benchmarks by name: download, ask a sample of the questions, and score."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import random
import re
from numbers import Real
from typing import TYPE_CHECKING, Any

import lm_eval
from lm_eval.tasks import TaskManager

from colab_utils import hub
from colab_utils.evaluation.harness import Model, without_bars
from colab_utils.evaluation.intervals import interval

if TYPE_CHECKING:
    import pandas as pd

QUOTED = re.compile(r"'([\w.-]+/[\w.-]+)'")  # a repository, in a message of datasets


class Benchmarks:
    """Benchmarks of the harness: their `names`, and what was `found`.

    `found` has for each benchmark what `lm_eval.simple_evaluate` returned.
    """

    def __init__(self, text: str) -> None:
        """Take the names from a text with commas in between.

        Raises ValueError for a name that the harness does not have. Nothing is
        downloaded yet.
        """
        parts = (one.strip() for one in text.split(","))
        self.names = list(dict.fromkeys(filter(None, parts)))
        # It reads thousands of files, which takes seconds.
        self.manager = TaskManager() if self.names else None
        known = self.manager.all_tasks if self.manager else []
        for name in self.names:
            if name not in known:
                similar = ", ".join(difflib.get_close_matches(name, known, 3)) or "none"
                raise ValueError(
                    f"{name!r} is not a benchmark of the harness (similar names: "
                    f"{similar}). Correct it, or remove it."
                )
        self.found: dict[str, dict[str, Any]] = {}

    def ask(self, model: Model, questions: int, seed: int = 0) -> None:
        """Ask the model questions of each benchmark, which are drawn at random.

        A benchmark of several tasks, such as mmlu, asks the same number in each task,
        and at least one. A benchmark that fails is left out; a printed line says why.
        """
        for name in self.names:
            try:
                with without_bars(), contextlib.redirect_stdout(io.StringIO()):
                    self.found[name] = self._ask(model, name, questions, seed)
            except Exception as error:  # a task has code of its own: it raises any
                print(f"{name} is left out. {_reason(error, name)}")

    def table(self) -> pd.DataFrame:
        """Return a row for each score of each benchmark, with its 95 % interval.

        A benchmark of several tasks without a common score has rows for each task. A
        score that is not a mean over questions has no interval. `examples` is the
        number of solved examples before a question.
        """
        import pandas as pd

        columns = ["benchmark", "metric", "score", "questions", "examples"]
        rows = []
        for name, results in self.found.items():
            every = list(results["samples"])
            parts = {name: every} if _scores(results, name, every) else {}
            for task, members in (parts or {one: [one] for one in every}).items():
                samples = [results["samples"][one] for one in members]
                # A task with two filters has each question twice.
                asked = sum(len({one["doc_id"] for one in some}) for some in samples)
                shots = sorted({results["n-shot"][one] for one in members})
                examples = " or ".join(map(str, shots))
                for metric, score in _scores(results, task, members).items():
                    rows.append([task, metric, score, asked, examples])
        return pd.DataFrame(rows, columns=columns)

    def _ask(
        self, model: Model, name: str, questions: int, seed: int
    ) -> dict[str, Any]:
        assert self.manager
        loaded = self.manager.load([name])
        tasks, draw = loaded["tasks"], random.Random(seed)
        each, samples = math.ceil(questions / len(tasks)), {}
        for part, task in tasks.items():
            size = len(task.eval_docs)
            samples[part] = sorted(draw.sample(range(size), min(each, size)))
        group = loaded["groups"].get(name)
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=[group] if group else list(tasks.values()),
            task_manager=self.manager,
            samples=samples,
            bootstrap_iters=0,
        )
        return results


def _scores(results: dict[str, Any], task: str, parts: list[str]) -> dict[str, str]:
    """Return the scores of a task, or of a group that has some, with their intervals.

    `parts` are the tasks that it consists of.
    """
    found = {}
    for key, value in results["results"].get(task, {}).items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr"):
            continue
        samples = [one for part in parts for one in results["samples"][part]]
        values = [one.get(metric) for one in samples if one["filter"] == kept]
        # A perplexity, for example, is not a mean over questions.
        is_mean = all(isinstance(one, Real) for one in values) and math.isclose(
            sum(values) / len(values), value, rel_tol=1e-6, abs_tol=1e-9
        )
        label = metric if kept == "none" else f"{metric}, {kept}"
        found[label] = str(interval(values)) if is_mean else f"{value:.3f}"
    return found


def _reason(error: Exception, name: str) -> str:
    """Return why a benchmark failed, in a sentence."""
    from huggingface_hub import get_token

    repo = QUOTED.search(str(error))
    known = hub.explain(error, repo[1] if repo else name, bool(get_token()))
    root: BaseException = error
    while root.__cause__:
        root = root.__cause__
    if str(error) in known and root is not error:  # the root says more
        known += f" ({type(root).__name__}: {root})"
    return " ".join(hub.scrub(known, None).split())[:400]
