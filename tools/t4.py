"""Run the course on a free Colab T4 from a shell, and bring back what it makes.

    python -m tools.t4                          # the leaderboard's task, and its rivals
    python -m tools.t4 --notebooks 01 02 --model demo --dataset my.csv
    python -m tools.t4 --rivals                 # the course alone

Uses Google's Colab CLI (docs/t4.md). The commit that is checked out runs there, in a
process of its own, so it goes on if the connection breaks. The runtime is ended in any
case. Results go to runs/t4-<date>; a run of the leaderboard's task adds its rows to
docs/t4-leaderboard.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools import t4_leaderboard as leaderboard
from tools.course_report import table
from tools.folders import new_folder
from tools.t4_colab import Colab, ColabError
from tools.t4_session import Run

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".t4" / "sessions"
RIVALS = ("unsloth", "trl")


def parameters_of(path: Path) -> set[str]:
    """Return the names that a notebook's parameters cell assigns."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            nodes = ast.parse("".join(cell["source"])).body
            assigned = [node for node in nodes if isinstance(node, ast.Assign)]
            targets = [target for node in assigned for target in node.targets]
            return {name.id for name in targets if isinstance(name, ast.Name)}
    return set()


def check(options: argparse.Namespace) -> None:
    """Raise ColabError for a notebook or a parameter that does not exist.

    It costs no quota here, and minutes of a T4 there.
    """
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for prefix in options.notebooks:
        if not any(path.name.startswith(prefix) for path in paths):
            names = ", ".join(path.stem for path in paths)
            raise ColabError(f"No notebook begins with {prefix}; there are: {names}.")
    known = set().union(*map(parameters_of, paths))
    for pair in options.parameters:
        name, equals, _ = pair.partition("=")
        if not equals:
            raise ColabError(f"{pair} is not NAME=value.")
        if name not in known:
            there = ", ".join(sorted(known))
            raise ColabError(
                f"No notebook has the parameter {name}; there are: {there}."
            )


def pack(folder: Path) -> tuple[Path, str]:
    """Pack the files of the commit that is checked out; returns archive and commit.

    Raises ColabError if this folder is not a git checkout.
    """
    archive = folder / "course.tar.gz"
    command = ["git", "archive", "--format=tar.gz", "-o", str(archive), "HEAD"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        raise ColabError(
            f"git cannot pack the commit: {made.stderr.strip()} Next: run this in a "
            "clone of the repository."
        )
    commit = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--untracked-files=no"):
        print("Uncommitted changes do not run: the T4 gets the last commit.")
    return archive, commit


def git(*arguments: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def with_task(options: argparse.Namespace, board: dict[str, Any]) -> None:
    """Fill in what the command line leaves open: the leaderboard's task.

    Without --notebooks the rivals run, too: TRL only until it has set the target.
    """
    task = leaderboard.TASK
    whole = not (options.notebooks or options.model or options.dataset)
    if options.rivals is None:
        wanted = RIVALS if board["target"] is None else RIVALS[:1]
        options.rivals = list(wanted) if whole and not options.parameters else []
    if whole:
        given = {pair.partition("=")[0] for pair in options.parameters}
        options.parameters += [
            f"{name}={value}"
            for name, value in task["parameters"].items()
            if name not in given
        ]
    options.model = options.model or task["model"]
    options.dataset = options.dataset or (task["dataset"] if whole else "")
    options.notebooks = options.notebooks or ["01", "02", "03", "04"]


def end_leftovers(program: str) -> None:
    """End the runtimes of earlier runs of this program that were killed."""
    for path in sorted(STATE.glob("t4-*.json")):
        number = int(path.stem.rpartition("-")[2])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, 0)
            continue  # that run goes on
        colab = Colab(program, path.stem, STATE)
        if not colab.kept.exists():
            path.rename(colab.kept)
        print(f"An earlier run was killed: its runtime {path.stem} is ended now.")
        colab.stop()


def connect(program: str) -> Colab:
    """Log in, and end the runtimes of killed runs; raises ColabError if it cannot."""
    name = f"t4-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}"
    STATE.mkdir(parents=True, exist_ok=True)
    colab = Colab(program, name, STATE)
    try:
        colab.log_in()
        end_leftovers(program)
    except ColabError:
        colab.forget()
        raise
    return colab


@contextlib.contextmanager
def rented(colab: Colab) -> Iterator[None]:
    """Rent a runtime, and end it in any case, also after Ctrl-C or a hang-up."""
    with signals_as_interrupts():
        try:
            print("renting a T4 ...", flush=True)
            colab.new()
            yield
        finally:
            if colab.kept.exists():
                print("ending the runtime ...", flush=True)
            colab.stop()


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let a kill or a closed terminal raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = (signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def report(folder: Path) -> None:
    """Print the summary of the notebooks, and add rows to the leaderboard."""
    for path in sorted(folder.glob("runs/*/summary.json")):
        print(table(json.loads(path.read_text(encoding="utf-8"))))
    for line in leaderboard.add_rows(folder, ROOT):
        print(line)


def run(options: argparse.Namespace) -> int:
    """Run on a T4; returns 0, or 1 if a step failed there."""
    check(options)
    with_task(options, leaderboard.read(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        archive, commit = pack(Path(temporary))
        colab = connect(options.colab)
        try:
            folder = new_folder(options.out, "t4-")
        except OSError as error:
            colab.forget()
            raise ColabError(
                f"Cannot write to {options.out}: {error}. Choose a folder with --out."
            ) from error
        print(f"results: {folder}")
        there = Run(folder, options.remote)
        try:
            with rented(colab):
                there.check_gpu(colab)
                there.start(colab, archive, commit, options)
                failed = there.watch(colab)
        finally:
            print(f"brought back: {there.brought_back()}")
            report(folder)
    if failed:
        print(f"Failed on the T4: {', '.join(failed)}. See {folder / 'log.txt'}.")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--notebooks", nargs="+", default=[], metavar="01")
    parser.add_argument("--dataset", default="", help="a name on the Hub, or a file")
    parser.add_argument("--model", default="", help="a public model on the Hub")
    parser.add_argument("--parameters", nargs="+", default=[], metavar="NAME=value")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, metavar="unsloth")
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    parser.add_argument("--colab", default="colab", help="the program of Google's CLI")
    parser.add_argument("--remote", default="/content", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ColabError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
