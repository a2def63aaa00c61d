"""The attacks: each strikes a target again and again, and returns rows."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from colab_utils import replacement
from colab_utils.training import checkpoints
from tools.attack import faults
from tools.attack.processes import Process, Shared, count_touches
from tools.attack.target import Row, Target, content
from tools.attack.trainings import Training

REFUSED = "Another process is writing into"
VANISHES = "the folder disappears until the run has ended"


def _observed(target: Target) -> Shared:
    """Return the number of the last checkpoint that a training has completed."""
    step = Shared()
    if isinstance(part := target.part, Training):
        folder = target.place / "checkpoints"

        def note(number: int) -> None:
            if (folder / f"checkpoint-{number}" / checkpoints.HASHES).exists():
                step.value = number

        part.on_checkpoint = note
    return step


def _tries(target: Target, row: Row, tries: int) -> Iterable[tuple[int, random.Random]]:
    for number in range(tries):
        target.reset()
        row.tries += 1
        yield number, target.draw(row.fault, number)


def kill_at_moments(target: Target, tries: int) -> Row:
    """Kill the run at a random moment."""
    row, step = Row(target.part.name, "SIGKILL at a random moment"), _observed(target)
    for number, draw in _tries(target, row, tries):
        step.value = 0
        process = target.start(target.task())
        process.sleep(draw.uniform(0, target.seconds))
        ended = process.kill()
        row.struck += ended.code < 0
        target.judge(row, number, ended, step.value)
    return row


def kill_at_touches(target: Target, tries: int) -> Row:
    """Kill the run just before a random access to a file of the workspace."""
    row = Row(target.part.name, "SIGKILL at a random file access")
    step, count = _observed(target), Shared()
    touches = _touches(target)
    for number, draw in _tries(target, row, tries):
        step.value = count.value = 0
        at = draw.randint(1, touches)
        task = count_touches(target.task(), target.root, count, at)
        ended = target.start(task).wait()
        row.struck += ended.code < 0
        target.judge(row, number, ended, step.value)
    return row


def _touches(target: Target) -> int:
    """Return how often a run accesses a file of the workspace."""
    count = Shared()
    target.reset()
    target.start(count_touches(target.task(), target.root, count)).wait()
    return count.value


def kill_on_slow_disk(target: Target, tries: int) -> Row:
    """Kill the run at a random moment while each call to the disk waits."""
    row = Row(target.part.name, f"SIGKILL on a disk that waits {faults.DELAY} a call")
    step = _observed(target)
    target.reset()
    process = faults.slow(target.task(), target.log)
    process.wait()
    seconds = time.monotonic() - process.began
    for number, draw in _tries(target, row, tries):
        step.value = 0
        process = faults.slow(target.task(), target.log)
        process.sleep(draw.uniform(0, seconds))
        ended = process.kill()
        row.struck += ended.code < 0
        target.judge(row, number, ended, step.value)
    return row


def fail_calls(target: Target, tries: int) -> list[Row]:
    """Let one call of each class that touches the workspace fail, under strace."""
    step = _observed(target)
    target.reset()
    calls = faults.calls_in(target.root, target.task(), target.log)
    rows = []
    for name, (_, errors) in faults.CLASSES.items():
        row = Row(target.part.name, f"{name} fails once ({', '.join(errors)})")
        for number, draw in _tries(target, row, tries if calls[name] else 0):
            step.value = 0
            given = name, draw.choice(calls[name]), errors[number % len(errors)]
            ended, struck = faults.failing(
                target.root, target.task(), target.log, *given
            )
            row.struck += struck
            if struck:  # else the call was one of another file, such as a font
                target.judge(row, number, ended, step.value)
        rows.append(row)
    return [row for row in rows if row.tries]


def fail_calls_in_python(target: Target, tries: int) -> list[Row]:
    """Let one call of the os module fail once, where strace is missing."""
    step, count, rows = _observed(target), Shared(), []
    for name in faults.PYTHON:
        errors = faults.CLASSES[name][1]
        row = Row(
            target.part.name, f"{name} of Python fails once ({', '.join(errors)})"
        )
        count.value = 0
        target.reset()
        task = target.task()
        target.start(faults.failing_in_python(task, name, 0, "EIO", count)).wait()
        calls = count.value
        for number, draw in _tries(target, row, tries if calls else 0):
            step.value = count.value = 0
            nth, error = draw.randint(1, calls), errors[number % len(errors)]
            failing = faults.failing_in_python(task, name, nth, error, count)
            ended = target.start(failing).wait()
            row.struck += count.value >= nth
            target.judge(row, number, ended, step.value)
        rows.append(row)
    return [row for row in rows if row.tries]


def vanish(target: Target, tries: int) -> Row:
    """Take the folder away at a random moment, as a Drive that disconnects."""
    row, step = Row(target.part.name, VANISHES), _observed(target)
    for number, draw in _tries(target, row, tries):
        step.value = 0
        process = target.start(target.task())
        process.sleep(draw.uniform(0, target.seconds))
        row.struck += not process.ended()
        _take_away(target)
        ended = process.wait()
        _bring_back(target)
        target.judge(row, number, ended, step.value)
    return row


def vanish_at_touches(target: Target, tries: int) -> Row:
    """Take the folder away just before a random access to a file of it."""
    row = Row(target.part.name, f"{VANISHES}, at a random file access")
    step, count = _observed(target), Shared()
    touches = _touches(target)
    for number, draw in _tries(target, row, tries):
        step.value = count.value = 0
        given = target.root, count, draw.randint(1, touches)
        task = count_touches(target.task(), *given, strike=lambda: _take_away(target))
        ended = target.start(task).wait()
        row.struck += _away(target).exists()
        _bring_back(target)
        target.judge(row, number, ended, step.value)
    return row


def _away(target: Target) -> Path:
    return target.root.with_name("away")


def _take_away(target: Target) -> None:
    target.root.rename(_away(target))


def _bring_back(target: Target) -> None:
    """Put the folder back in place of what was written meanwhile."""
    if _away(target).exists():
        shutil.rmtree(target.root, ignore_errors=True)
        _away(target).rename(target.root)


def race(target: Target, tries: int) -> Row:
    """Let two processes write both versions at once."""
    row = Row(target.part.name, "two processes at once")
    other_log = target.log.with_name("other.txt")
    for number, draw in _tries(target, row, tries):
        first = target.start(target.task("new"))
        first.sleep(draw.uniform(0, target.seconds / 4))
        second = Process(target.task("old"), other_log)
        ends = [second.wait(), first.wait()]
        row.struck += any(REFUSED in one.log for one in ends)
        strange = [one for one in ends if one.code and REFUSED not in one.log]
        if strange:
            row.note("lost", number, f"one of both fails: {strange[0].why}")
        state = target.found()
        if state in ("lost", "mixed"):
            row.note(state, number, f"{sorted(content(target.place))[:4]}")
        # The checkpoints of the other version are set aside, and never deleted.
        target.finish(row, number, aside="checkpoints.")
    return row


def read_meanwhile(target: Target, tries: int) -> Row:
    """Let a reader read all files again and again while a writer replaces them."""
    row = Row(target.part.name, "a reader while a result is replaced")
    counts = {
        name: Shared() for name in ("old", "new", "mixed", "lost", "absent", "refused")
    }
    done = Shared()
    target.reset()

    def write() -> None:
        for number in range(tries):
            target.part.write(("new", "old")[number % 2])

    def read() -> None:
        while not done.value:
            try:
                found = target.part.find()
                try:
                    with replacement.reading(found):
                        state = target.compare(content(found))
                except (RuntimeError, FileNotFoundError):
                    state = "refused"  # it was replaced meanwhile
            except FileNotFoundError:
                state = "absent"
            counts[state].value += 1

    reader = Process(read, target.log.with_name("other.txt"))
    ended = target.start(write).wait()
    done.value = 1
    end = reader.wait()
    row.tries = sum(count.value for count in counts.values())
    row.struck = counts["old"].value + counts["new"].value
    row.mixed = counts["mixed"].value
    row.lost = counts["lost"].value + counts["absent"].value
    if row.lost or row.mixed:
        found = {name: count.value for name, count in counts.items()}
        row.notes.append(f"{row.part}, {row.fault}: {found}")
    for name, one in {"writer": ended, "reader": end}.items():
        if one.code:
            row.note("lost", 0, f"the {name} fails: {one.why}")
    target.finish(row, 0)
    return row


def other_hash_seeds(target: Target, tries: int) -> Row:
    """Write the result in fresh processes, each with its own PYTHONHASHSEED."""
    row = Row(target.part.name, "another PYTHONHASHSEED")
    for number, _ in _tries(target, row, tries):
        command = [sys.executable, "-m", "tools.attack", "--write", target.part.name]
        command += ["--inputs", str(target.part.inputs), "--root", str(target.root)]
        environment = os.environ | {"PYTHONHASHSEED": str(number + 1)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        row.struck += run.returncode == 0
        if run.returncode:
            row.note("lost", number, run.stderr.strip().splitlines()[-1])
        elif content(target.place) != target.results["new"]:
            row.note("lost", number, target.difference(content(target.place)))
    return row


def one(attack: Callable[[Target, int], Row]) -> Callable[[Target, int], list[Row]]:
    """Return an attack that returns its row in a list."""
    return lambda target, tries: [attack(target, tries)]


# Each attack, and its tries in the full form: on a training, on a merge, which takes a
# quarter of a second, and on another part.
ATTACKS: dict[str, tuple[Callable[[Target, int], list[Row]], int, int, int]] = {
    "moments": (one(kill_at_moments), 100, 100, 50),
    "accesses": (one(kill_at_touches), 10, 30, 20),
    "slow": (one(kill_on_slow_disk), 3, 8, 5),
    "calls": (fail_calls, 2, 5, 4),
    "python": (fail_calls_in_python, 2, 5, 4),
    "vanish": (one(vanish), 8, 20, 10),
    "vanish-accesses": (one(vanish_at_touches), 40, 40, 20),
    "race": (one(race), 10, 100, 30),
    "reader": (one(read_meanwhile), 0, 40, 40),
    "hash": (one(other_hash_seeds), 2, 2, 2),
}
STRACE = {"slow", "calls"}  # attacks that need strace
WITHOUT = {"python"}  # and those for machines that lack it
