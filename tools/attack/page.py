"""Write docs/reliability.md: the table of faults and parts."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from datetime import date

from tools.attack.target import Row

TITLE = """\
# Reliability

Which faults the course survives, and how often that was tried. `make attack` writes
this page. Each try begins with an older finished result, starts a run that writes a
newer one, and lets one thing go wrong. Then it looks at the files, and runs once more
to the end.

- **struck**: tries in which the fault met the run before its end. For a race: tries in
  which a process was refused. For a reader, which reads as `models.load_adapter` does:
  reads of a whole result; the others were refused, because it was replaced meanwhile.
- **lost**: neither the older result nor the newer one is whole, a run reports success
  without its result, a completed checkpoint is not resumed, or the next run does not
  write the same bytes as a run without a fault. Times in recipes are not compared.
- **mixed**: files of both results in one folder.
- **leftovers**: the next run leaves a file that is not part of its result.

"""
HEAD = (
    "| part | fault | tries | struck | lost | mixed | leftovers |\n"
    "|---|---|---:|---:|---:|---:|---:|\n"
)


def page(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Return the page in Markdown."""
    lines = [
        f"| {r.part} | {r.fault} | {r.tries:,} | {r.struck:,} | {r.lost} | {r.mixed} "
        f"| {r.left} |\n"
        for r in rows
    ]
    tries, bad = sum(r.tries for r in rows), sum(r.lost + r.mixed for r in rows)
    left = sum(r.left for r in rows)
    calls = "strace lets one system call fail that touches a file of the workspace."
    if "calls" not in options.faults:
        calls = "Only functions of Python's os module fail: strace was not used."
    repeat = f"--seed {options.seed} --share {options.share:g}"
    how = (
        f"{date.today()}, {platform.system()} {platform.machine()}, Python "
        f"{platform.python_version()}: {tries:,} tries, {bad:,} lost or mixed, "
        f"{left:,} with leftovers. {calls} To repeat a part's rows: "
        f'`python -m tools.attack {repeat} --parts "merge"`.\n\n'
    )
    notes = [f"- {note}\n" for row in rows for note in row.notes]
    found = ["\n## Losses and leftovers\n\n", *notes] if notes else []
    return "".join([TITLE, how, HEAD, *lines, *found])
