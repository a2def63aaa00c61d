"""Build a dataset that is larger than the memory, with the steps of 01_create_dataset.

The rows lie on disk meanwhile. Each step reads the rows that the steps before have
kept, a part at a time, and decides with a few numbers of each row.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import runtime
from colab_utils.data import describing, loading, saving, splitting
from colab_utils.data.curation.quality import Rule
from colab_utils.data.describing import Facts
from colab_utils.data.large import spool, stages
from colab_utils.data.large.workers import Workers, processes
from colab_utils.data.repeats.dedup import texts_of
from colab_utils.data.schema import Rejected, Row, reject_row
from colab_utils.data.shapes import kinds
from colab_utils.data.shapes.formats import Tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colab_utils.data.repeats.engine import Job

    Indices = NDArray[np.int64]

PART = 1000  # rows that a process works on at a time
KEPT, OTHER_KIND, EXACT, NEAR, TEST = range(5)  # where a row goes


def build(
    source: str,
    folder: Path,
    *,
    kind: str = "auto",
    rules: Sequence[Rule] = (),
    test_share: float = 0.1,
    seed: int = 0,
    license: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Load, filter, deduplicate, split and save a dataset; return its recipe.

    The rows, and the order of the rejected rows, are those of `load`, `filter_rows`,
    `drop_exact`, `near_duplicates`, `split` and `save` one after the other, but the
    rows are not in memory, only about 60 bytes of each. Files in TMPDIR take twice the
    size of the source meanwhile.

    Each of `rules` returns the reason why it rejects a row, or None. `workers` is the
    number of processes: without it, one for a small file, else one a CPU core. Raises
    what `load`, `split` and `save` raise.
    """
    kind = kinds.choose(kind)
    workers = workers or processes(source)
    with saving.replacing(folder) as part, Workers(workers) as pool:
        job = _Job(pool)
        job.read(source, kind, rules)
        job.drop_exact()
        job.drop_near()
        job.split(test_share, seed)
        facts = job.write(part)
        steps = "\n".join(f"{name:20}{count:>12,}" for name, count in job.steps.items())
        print(steps)
        card = f"Rows after each step:\n\n```\n{steps}\n```"
        fields = {
            "source": source,
            "metric": job.metric(),
            "rows": job.counts(),
            "parameters": {"kind": kind, "test_share": test_share, "seed": seed},
            "rules": [*map(_name, rules)],
        }
        return saving.describe(part, folder.name, facts, card, license, fields)


def _name(rule: Rule) -> str:
    """Return a rule's name for the recipe, with its parameters if it shows them."""
    return getattr(rule, "__name__", None) or repr(rule)


class _Job:
    """The steps of `build`, and what each leaves for the next.

    `fate` is where each row of the spool goes, and `first` the row that it repeats.
    """

    def __init__(self, pool: Workers) -> None:
        self.pool = pool
        self.spool = spool.Spool()
        self.texts, self.prompts = spool.Prints(), spool.Prints()
        self.rejected, self.filtered = spool.RejectedLines(), spool.RejectedLines()
        self.tally = Tally()
        self.columns: set[tuple[str, tuple[str, ...]]] = set()
        self.keys: set[str] = set()
        self.steps: dict[str, int] = {}

    def read(self, source: str, kind: str, rules: Sequence[Rule]) -> None:
        """Read, validate and filter all rows, and decide the kind of the dataset.

        Rows of another kind are rejected, also if a rule has rejected them before.
        """
        import numpy as np

        from colab_utils.data.repeats.hashes import keep_freed_memory

        keep_freed_memory()  # what comes from a worker is received in such arrays
        raw = runtime.progress(loading.raw_rows(source), "reading", rows=1)
        work = functools.partial(stages.read_and_compare, kind, rules)
        for made, by in self.pool.map(work, spool.parts(raw, PART)):
            self.spool.add(made.lines, by.numbers, made.found, by.groups, by.shared)
            self.texts.add(by.texts)
            self.prompts.add(by.prompts)
            self.tally += made.tally
            self.rejected.add(("", row) for row in made.rejected)
            self.filtered.add(made.filtered)
            self.columns |= made.columns
            self.keys |= made.keys
        self.spool.close()
        self.decision = kinds.decide(self.tally.found, kind)
        self.reasons = {found: self._reason(found) for found in self.tally.found}
        other = [self.reasons[found] is not None for found in self.spool.found]
        self.fate = np.array([KEPT, OTHER_KIND], np.uint8)[
            np.array(other, np.int64)[self.spool.rows["found"]]
        ]
        self.first = np.arange(len(self.fate))
        wrong = self.rejected.count + sum(
            count for found, count in self.tally.found.items() if self.reasons[found]
        )
        total = self.rejected.count + self.tally.found.total()
        if wrong == total:
            examples = [*itertools.islice(self._misread(), 10_000)]
            raise ValueError(loading.why_no_rows(source, self.tally, examples))
        loading.report(self.tally, self.decision)
        self.steps = {"read": total, "readable": total - wrong}
        self._count("kept by the rules")
        if KEPT not in self.fate:
            reasons = Counter(row.reason for _, row in self.filtered).most_common(3)
            raise ValueError(
                f"No row is left: the rules reject all {total - wrong:,} rows "
                f"({'; '.join(f'{n:,} x {reason}' for reason, n in reasons)}). "
                "Remove the rule or change its parameters."
            )

    def _reason(self, found: str) -> str | None:
        """Return why rows of which this was found are rejected, or None."""
        if self.decision.kind == kinds.UNPAIRED:
            raise ValueError(
                "These rows have answers that are marked as good or bad. Pairs of them "
                "are preference rows, and to find the pairs all rows must be in "
                "memory: use data.load, data.split and data.save, or kind = "
                '"instruction", which keeps the good answers.'
            )
        return self.decision.reason(found)

    def _count(self, step: str) -> None:
        self.steps[step] = int((self.fate == KEPT).sum())

    def _with(self, fate: int) -> Indices:
        """Return the indices of the rows with a fate; `KEPT` are those kept so far."""
        import numpy as np

        return np.flatnonzero(self.fate == fate)

    def _misread(self) -> Iterator[Rejected]:
        """Yield rows that can't be read, and rows of another kind, by their lines."""
        others = self._with(OTHER_KIND)
        names = [self.spool.found[i] for i in self.spool.rows["found"][others]]
        return heapq.merge(
            (row for _, row in self.rejected),
            (
                dataclasses.replace(row, reason=reason)
                for found, row in self.filtered
                if (reason := self.reasons[found])
            ),
            (
                reject_row(row, str(self.reasons[found]))
                for row, found in zip(self.spool.read(others), names, strict=True)
            ),
            key=lambda row: row.line,
        )

    def drop_exact(self) -> None:
        """Find rows with the content of an earlier row."""
        self._drop(EXACT, spool.repeats(self.spool.rows[self._with(KEPT)]))
        self._count("no exact duplicates")

    def drop_near(self) -> None:
        """Find rows that nearly repeat an earlier row."""
        self._drop(NEAR, self._first(self.texts, texts_of))
        self._count("no near duplicates")

    def _first(
        self, prints: spool.Prints, texts: Callable[[Row], tuple[str, str]]
    ) -> Any:
        """Return for each kept row the place of the first kept row that it repeats."""
        from colab_utils.data.repeats.engine import Repeats

        found, kept = Repeats(), self._with(KEPT)
        for part in prints.only(self.fate == KEPT):
            found.add_prints(part)

        def run(table: Any, jobs: Iterable[Job]) -> Iterator[list[Any]]:
            work = functools.partial(stages.compare, texts, self.pool.share(table))
            return self.pool.map(work, jobs)

        return found.first(lambda some: [*self.spool.lines(kept[some])], run)

    def _drop(self, fate: int, first: Indices) -> None:
        """Give a fate to the kept rows that are not the first of their group."""
        kept = self._with(KEPT)
        self.first[kept] = kept[first]
        self.fate[kept[self.first[kept] != kept]] = fate

    def split(self, test_share: float, seed: int) -> None:
        """Choose the test rows; related rows stay on one side."""
        import numpy as np

        kept = self._with(KEPT)
        first = self._first(self.prompts, splitting.split_texts)
        groups = [self.spool.groups[i] for i in kept.tolist()]
        shared = self.spool.shared_by(self.fate == KEPT)
        related = splitting.related(first.tolist(), groups, shared)
        test = np.array(splitting.choose(related, test_share, seed))
        self.fate[kept[test]] = TEST

    def write(self, part: Path) -> Facts:
        """Write the files of the dataset; return what the card says about them."""
        facts = Facts(self.decision.kind, {}, columns=self._columns(), keys=self.keys)
        for name, fate in (("train", KEPT), ("test", TEST)):
            kept = self._with(fate)
            facts.characters[name] = self.spool.rows["characters"][kept]
            with (part / f"{name}.jsonl").open("wb") as file:
                file.writelines(self._filled(kept, facts.columns))
        rejected = itertools.chain(
            self._misread(),
            (row for found, row in self.filtered if not self.reasons[found]),
            self._repeats(EXACT, "repeats line"),
            self._repeats(NEAR, "nearly repeats line"),
        )

        def counted() -> Iterator[dict[str, Any]]:
            for row in rejected:
                facts.reasons[describing.general(row.reason)] += 1
                yield row.as_dict()

        saving.write_jsonl(part / "rejected.jsonl", counted())
        return facts

    def _columns(self) -> set[str]:
        kept = (names for found, names in self.columns if not self.reasons[found])
        return set(itertools.chain.from_iterable(kept))

    def _filled(self, kept: Indices, columns: set[str]) -> Iterator[bytes]:
        """Yield lines of rows; a label of any row is "" in rows without it.

        `load` does the same with rows in memory.
        """
        labels = [
            (1 << i, name) for i, name in enumerate(spool.LABELS) if name in columns
        ]
        known = self.spool.rows["labels"][kept]
        if all((known & bit).all() for bit, _ in labels):
            yield from self.spool.blocks(kept)
            return
        for line, has in zip(self.spool.lines(kept), known.tolist(), strict=True):
            for bit, name in labels:
                if not has & bit:
                    line = line[:-2] + f', "{name}": ""}}\n'.encode()
            yield line

    def _repeats(self, fate: int, reason: str) -> Iterator[Rejected]:
        """Yield the rows with a fate; the reason names the line that they repeat."""
        repeated = self._with(fate)
        lines = self.spool.rows["line"][self.first[repeated]].tolist()
        for row, line in zip(self.spool.read(repeated), lines, strict=True):
            yield reject_row(row, f"{reason} {line}")

    def metric(self) -> str:
        """Return how answers are scored: what `short_answers` says of the test rows."""
        answers = self.spool.rows["answer"][self._with(TEST)]
        short = (answers <= 30).sum() >= 0.95 * len(answers)
        return "accuracy" if short else "loss"

    def counts(self) -> dict[str, int]:
        """Return how many rows were read, kept and rejected, and are in each file."""
        train, test = len(self._with(KEPT)), len(self._with(TEST))
        read = self.steps["read"]
        kept = {"in": read, "kept": train + test, "rejected": read - train - test}
        return {**kept, "train": train, "test": test}
