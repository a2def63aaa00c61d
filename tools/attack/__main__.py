"""Attack the parts of the course, and write docs/reliability.md."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tools.attack import run
from tools.attack.faults import has_strace
from tools.attack.page import page
from tools.attack.target import Row
from tools.attack.trials import ATTACKS, STRACE, WITHOUT

PAGE = Path("docs", "reliability.md")
PROCESSES = 2  # parts that are attacked at once


def main() -> int:
    """Run the attacks, and return 1 if anything was lost or mixed."""
    options = _options()
    if options.write:
        run.quiet()
        part = run.PARTS[options.write](options.inputs, options.root)
        part.load()
        part.write("new")
        return 0
    context = multiprocessing.get_context("spawn")
    given = (options.faults, options.seed, options.share)
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        futures = [pool.submit(run.attack, name, *given) for name in options.parts]
        rows: list[Row] = []
        for future in futures:
            rows += future.result()
            # The page has all rows so far: a run that is stopped leaves a shorter one.
            options.page.write_text(page(rows, options), encoding="utf-8")
    print(options.page.read_text("utf-8"))
    return int(any(row.lost or row.mixed for row in rows))


def _options() -> argparse.Namespace:
    left_out = WITHOUT if has_strace() else STRACE
    usual = [name for name in ATTACKS if name not in left_out]
    parser = argparse.ArgumentParser(prog="attack", description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=run.PARTS, default=list(run.PARTS)
    )
    parser.add_argument("--faults", nargs="+", choices=ATTACKS, default=usual)
    parser.add_argument("--share", type=float, default=1, help="of the tries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=PAGE)
    # What an attack starts in a fresh process: write the newer result of a part.
    for name in ("--write", "--inputs", "--root"):
        kind = str if name == "--write" else Path
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
