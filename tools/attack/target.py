"""A part under attack: its older and its newer result, and the judgment of a try."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from colab_utils import recipe
from tools.attack.parts import Part
from tools.attack.processes import Ended, Process

TIMES = (
    *("made", "start_time", "end_time", "total_evaluation_time_seconds", "date"),
    "seconds/answers",
)


@dataclass
class Row:
    """The tries of one attack on one part, and what they did."""

    part: str
    fault: str
    tries: int = 0
    struck: int = 0
    lost: int = 0
    mixed: int = 0
    left: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, kind: str, number: int, why: str) -> None:
        """Count a loss, a mixture or a leftover of the try `number`."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.notes.append(f"{self.part}, {self.fault}, try {number}: {kind}: {why}")


def content(place: Path, work: Iterable[str] = ()) -> dict[str, str]:
    """Return name and hash of the files of a result, without times.

    `work` names what a run keeps there until it ends.
    """
    if place.is_file():
        return {"": recipe.sha256(place)}
    found = {}
    for file in sorted(place.rglob("*")):
        name = str(file.relative_to(place))
        if file.is_file() and not name.startswith(tuple(work)):
            found[_undated(name)] = _hash(file)
    return found


def _undated(name: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d.-]+\d", "TIME", name)


def _hash(file: Path) -> str:
    """Return the hash of a file, or what identifies a JSON object with times.

    A list of objects, such as a training's log, counts as such a file too.
    """
    if file.suffix == ".json":
        with contextlib.suppress(ValueError):
            found = json.loads(file.read_text("utf-8"))
            objects = found if isinstance(found, list) else [found]
            if any(isinstance(one, dict) and set(TIMES) & set(one) for one in objects):
                timeless = [
                    [item for item in one.items() if item[0] not in TIMES]
                    for one in objects
                ]
                return json.dumps(timeless)
    return recipe.sha256(file)


class Target:
    """A part in a folder of its own, with the two results that it may leave."""

    def __init__(self, part: Part, folder: Path, seed: int) -> None:
        self.part, self.seed = part, seed
        self.root, self.template = part.root, folder / "template"
        self.log, self.place = folder / "log.txt", part.out
        part.begin()
        self.results = {"old": self._reference("old")}
        shutil.copytree(self.root, self.template)
        began = time.monotonic()
        self.results["new"] = self._reference("new")
        self.seconds = time.monotonic() - began
        self.names = self._names()
        if self.results["old"] == self.results["new"]:
            raise ValueError(f"{part.name}: both versions write the same files.")

    def _reference(self, version: str) -> dict[str, str]:
        ended = self.start(self.task(version)).wait()
        if ended.code:
            raise RuntimeError(f"{self.part.name} fails by itself:\n{ended.log}")
        return content(self.place)

    def task(self, version: str = "new") -> Callable[[], None]:
        """Return the function that writes a version."""
        return lambda: self.part.write(version)

    def start(self, task: Callable[[], None]) -> Process:
        """Start a task in a process of its own."""
        return Process(task, self.log)

    def reset(self) -> None:
        """Put the older result in place, and nothing else."""
        shutil.rmtree(self.root)
        shutil.copytree(self.template, self.root)

    def draw(self, fault: str, number: int) -> random.Random:
        """Return the random numbers of a try: the same ones for the same seed."""
        return random.Random(f"{self.seed}/{self.part.name}/{fault}/{number}")

    def _names(self) -> set[str]:
        paths = (path.relative_to(self.root) for path in self.root.rglob("*"))
        return {_undated(str(path)) for path in paths}

    def found(self) -> str:
        """Return which result a reader finds: "old", "new", "mixed" or "lost"."""
        if self.start(lambda: print(self.part.find())).wait().code:
            return "lost"
        return self.compare(content(self.place, self.part.work))

    def compare(self, found: dict[str, str]) -> str:
        """Return which result these files are."""
        for version, files in self.results.items():
            if found == files:
                return version
        old, new = (set(self.results[v].items()) for v in ("old", "new"))
        items = set(found.items())
        return "mixed" if items & (old - new) and items & (new - old) else "lost"

    def judge(self, row: Row, number: int, ended: Ended, step: int = 0) -> None:
        """Count what a try has left, then write the newer result to the end.

        `ended` is how the attacked process ended, and `step` the last checkpoint that
        it had completed.
        """
        state = self.found()
        if ended.hung:
            row.note("lost", number, f"the run never ended ({ended.why})")
        if state in ("lost", "mixed"):
            why = self.difference(content(self.place, self.part.work))
            row.note(state, number, f"{why} ({ended.code}: {ended.why})")
        elif ended.code == 0 and state == "old":
            row.note("lost", number, "the run reported success, but the older is there")
        self.finish(row, number, 0 if state == "new" else step)

    def finish(self, row: Row, number: int, step: int = 0, aside: str = "") -> None:
        """Run once more without a fault, and compare with the reference.

        Names that begin with `aside` in the result may stay.
        """
        ended = self.start(self.task()).wait()
        kept = str(self.part.place / aside) if aside else "nothing"
        names = {name for name in self._names() if not name.startswith(kept)}
        found = content(self.place, [aside] if aside else [])
        if ended.hung:
            row.note("lost", number, "the next run never ends")
        elif ended.code:
            row.note("lost", number, f"the next run fails: {ended.why}")
        elif any(found.get(name) != one for name, one in self.results["new"].items()):
            row.note(
                "lost", number, f"the next run differs in {self.difference(found)}"
            )
        elif names != self.names:
            row.note("left", number, ", ".join(sorted(names ^ self.names)[:4]))
        resumed = re.search(r"resuming at step (\d+)", ended.log)
        if step and (not resumed or int(resumed[1]) < step):
            row.note("lost", number, f"checkpoint {step} was not resumed")

    def difference(self, found: dict[str, str]) -> str:
        """Return the names of files that are not those of the newer result."""
        other = set(found.items()) ^ set(self.results["new"].items())
        return ", ".join(sorted({name for name, _ in other})[:4])
