"""Run every notebook of the course in order, without a browser, and report at the end.

    python -m tools.run_course                                  # the demo world
    python -m tools.run_course --dataset my.csv --model meta-llama/Llama-2-7b-hf
    python -m tools.run_course --notebooks 01 02 --parameters EPOCHS=1

Writes the folder runs/<date-time>: the executed notebooks, the same as HTML, their
workspace and summary.json. The link runs/latest points to it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colab_utils.data.files import readers
from tools import scrubbing
from tools.course_report import recipe, summarize, table
from tools.execute import (
    load_papermill,
    run_notebook,
    use_this_interpreter,
)
from tools.folders import new_folder

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {*readers.SUFFIXES, ".txt"}


class CourseError(Exception):
    """The reason why the course cannot start or continue, and what to do."""


def _is_source(value: str) -> bool:
    """Return whether a value is a pattern or a part of a file, with data to read."""
    try:
        return bool(readers.files(value))
    except (FileNotFoundError, ValueError):
        return False


def existing_path(value: str) -> str:
    """Return a file's absolute path; any other value stays as it is.

    A pattern such as data/*.jsonl becomes an absolute pattern.

    Raises CourseError if the value looks like a file that does not exist.
    """
    try:
        path = Path(value).expanduser()
        if value != "demo" and path.exists():
            return str(path.resolve())
        if _is_source(value):
            return str(path.absolute())
    except (OSError, RuntimeError) as error:
        raise CourseError(f"{value[:200]} is not a path: {error}.") from error
    looks_local = path.suffix.lower() in SUFFIXES or value.startswith((".", "/", "~"))
    if looks_local and "://" not in value:
        raise CourseError(f"{value} does not exist (looked for {path.absolute()}).")
    return value


def parameter(text: str) -> tuple[str, Any]:
    """Split `NAME=value`; the value is read as a literal, or else kept as text.

    >>> parameter("EPOCHS=2"), parameter("DATASET=my.csv")
    (('EPOCHS', 2), ('DATASET', 'my.csv'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=value")
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, read(value)
    return name, value


def select_notebooks(folder: Path, prefixes: list[str]) -> list[Path]:
    """List a folder's numbered notebooks in order, or only those with a prefix."""
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    names = ", ".join(path.stem for path in every) or "none"
    for prefix in prefixes:
        if not any(path.name.startswith(prefix) for path in every):
            raise CourseError(f"No notebook begins with {prefix}; there are: {names}.")
    paths = [p for p in every if not prefixes or p.name.startswith(tuple(prefixes))]
    if not paths:
        raise CourseError(f"No notebooks named like 01_name.ipynb in {folder}.")
    return paths


def known_parameters(paths: list[Path], given: dict[str, Any]) -> dict[Path, set[str]]:
    """Find the parameters of each notebook; CourseError for one that none has."""
    papermill = load_papermill()
    known = {path: set(papermill.inspect_notebook(path)) for path in paths}
    names = sorted(set().union(*known.values()))
    for name in set(given).difference(names):
        there = ", ".join(names)
        raise CourseError(f"No notebook has the parameter {name}; there are: {there}.")
    return known


def fully_fine_tuned(workspace: Path) -> bool:
    """Return whether 02 trained all weights, so that there is no adapter to merge."""
    return recipe(workspace, "adapters", "my-adapter").get("method") == "full"


def link_latest(folder: Path) -> None:
    """Let the link `latest` next to the run's folder point to it, in one step."""
    link, temporary = folder.parent / "latest", folder.parent / f".latest-{folder.name}"
    try:
        temporary.symlink_to(folder.name)
        temporary.replace(link)
    except OSError as error:
        print(f"{link} was not updated ({error}). The newest run is {folder}.")


def set_environment(workspace: Path) -> None:
    """Set what the kernels inherit: workspace, headless mode, quiet libraries."""
    os.environ |= {
        "WORKSPACE": str(workspace),
        "HEADLESS": "1",
        # Idle threads sleep; spinning ones make a busy machine many times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a warning at each kernel's start
    }
    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)


def run_notebooks(
    known: dict[Path, set[str]], given: dict[str, Any], folder: Path, workspace: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the notebooks in order, up to the first failure; yield name and result."""
    for number, path in enumerate(known, start=1):
        print(f"[{number}/{len(known)}] {path.stem} ...", flush=True)
        if path.stem.startswith("04") and fully_fine_tuned(workspace):
            print("      left out: full fine-tuning leaves no adapter to merge")
            continue
        own = {name: value for name, value in given.items() if name in known[path]}
        result = run_notebook(path, folder / path.name, own)
        failure = result["failure"]
        if failure:
            page = (folder / path.name).with_suffix(".html")
            print(scrubbing.remove(f"\n{failure}\n\nThe whole notebook: {page}"))
        yield path.stem, result
        if failure:
            return


def run_course(options: argparse.Namespace) -> int:
    """Run the notebooks, write and print the summary; returns 0, or 1 on a failure."""
    paths = select_notebooks(options.folder, options.notebooks)
    given = {"MODEL": existing_path(options.model)}
    if options.dataset:
        given["DATASET"] = existing_path(options.dataset)
    extra = dict(options.parameters)
    known = known_parameters(paths, extra)
    given |= extra
    try:
        folder = new_folder(options.out)
    except OSError as error:
        raise CourseError(
            f"Cannot write to {options.out}: {error}. Choose a folder with --out."
        ) from error
    # A given workspace may hold the results of earlier notebooks.
    workspace = Path(os.environ.get("WORKSPACE") or folder / "workspace").absolute()
    set_environment(workspace)
    values = ", ".join(f"{name} = {value!r}" for name, value in given.items())
    print(f"run {folder}", scrubbing.remove(values), sep="\n")
    runs: dict[str, Any] = {}
    failure = None
    try:
        with use_this_interpreter():
            for name, result in run_notebooks(known, given, folder, workspace):
                failure = result.pop("failure")
                runs[name] = result
    finally:
        summary = summarize(workspace, runs)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        link_latest(folder)
        print(table(summary))
        print(f"\nsummary: {folder / 'summary.json'}")
    return 1 if failure else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a file or a name on the Hub (default: demo)")
    parser.add_argument("--model", default="demo", help="a name on the Hub or a folder")
    parser.add_argument(
        "--parameters", nargs="+", type=parameter, default=[], metavar="NAME=value"
    )
    parser.add_argument(
        "--notebooks", nargs="+", default=[], metavar="01", help="only these"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks")
    options = parser.parse_args(arguments)
    try:
        return run_course(options)
    except CourseError as error:
        print(scrubbing.remove(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Without this, asyncio logs the interrupted cell again with its traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
