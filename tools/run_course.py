"""Run the course without a browser: every notebook in order, one report at the end.

    python tools/run_course.py                                  # the demo world
    python tools/run_course.py --dataset my.csv --model meta-llama/Llama-2-7b-hf
    python tools/run_course.py --notebooks 01 02 --parameters EPOCHS=1

Writes runs/<date-time>/: the executed notebooks, the same as HTML, the workspace that
they made and summary.json; runs/latest points there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_report import recipe, summarise, table

from colab_utils import hub
from colab_utils.data import readers
from colab_utils.runtime import GIB

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {*readers.SUFFIXES, ".txt"}
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "huggingface")


class CourseError(Exception):
    """Why the course does not start or go on; the text says what to do."""


def existing_path(value: str) -> str:
    """A file's name made absolute, any other value as it is.

    Raises CourseError for what looks like a file and is none.
    """
    try:
        path = Path(value).expanduser()
        if value != "demo" and path.exists():
            return str(path.resolve())
    except (OSError, RuntimeError) as error:
        raise CourseError(f"{value[:200]} is no path: {error}.") from error
    looks_local = path.suffix.lower() in SUFFIXES or value.startswith((".", "/", "~"))
    if looks_local and "://" not in value:
        raise CourseError(f"{value} does not exist (looked for {path.absolute()}).")
    return value


def parameter(text: str) -> tuple[str, Any]:
    """`NAME=value` as a name and a value; literals are read, all else is a string.

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


def chosen(folder: Path, prefixes: list[str]) -> list[Path]:
    """The numbered notebooks of a folder in order, or those with these prefixes."""
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
    """Which parameters each notebook has; CourseError for one that none has."""
    import papermill

    known = {path: set(papermill.inspect_notebook(path)) for path in paths}
    names = sorted(set().union(*known.values()))
    for name in set(given).difference(names):
        there = ", ".join(names)
        raise CourseError(f"No notebook has the parameter {name}; there are: {there}.")
    return known


@contextlib.contextmanager
def this_interpreter() -> Iterator[None]:
    """Let the kernel `python3` be the Python that runs this, whatever is installed."""
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(os.path.join(folder, "kernels", "python3"))
        before = os.environ.get("JUPYTER_PATH", "")
        os.environ["JUPYTER_PATH"] = f"{folder}{os.pathsep}{before}".strip(os.pathsep)
        yield


class PeakMemory(threading.Thread):
    """Samples the resident memory of all child processes; `gib` is their peak sum."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib, self.stop = 0.0, threading.Event()

    def run(self) -> None:
        import psutil

        while not self.stop.wait(0.1):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    total += process.memory_info().rss
            self.gib = max(self.gib, total / GIB)


def run_notebook(path: Path, executed: Path, parameters: dict[str, Any]) -> dict:
    """Execute one notebook; returns its seconds, its peak memory and its failure."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    memory, start, failure = PeakMemory(), time.perf_counter(), None
    memory.start()
    try:
        papermill.execute_notebook(
            path,
            executed,
            parameters,
            kernel_name="python3",
            progress_bar=sys.stderr.isatty(),
            cwd=ROOT,
        )
    except papermill.PapermillExecutionError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("---->")]
        what = f"{error.ename}: {error.evalue}".splitlines()[:12]
        failure = "\n".join([failing_cell(path, executed), *lines[:1], *what])
    except DeadKernelError:
        failure = (
            "The kernel died without an error. Most often the memory ran out: the peak "
            f"was {memory.gib:.1f} GiB. Try a smaller model or a shorter sequence."
        )
    finally:
        memory.stop.set()
        memory.join()
        seconds = round(time.perf_counter() - start, 1)
        publish(executed)
    result = {"seconds": seconds, "peak_rss_gib": round(memory.gib, 2)}
    return {**result, "failure": failure}


def failing_cell(path: Path, executed: Path) -> str:
    """Which cell of the notebook raised, counted as a reader counts them."""
    ids = [cell.get("id") for cell in json.loads(path.read_bytes())["cells"]]
    for cell in json.loads(executed.read_bytes())["cells"]:
        if any(out["output_type"] == "error" for out in cell.get("outputs", [])):
            known = cell.get("id") in ids
            number = ids.index(cell["id"]) + 1 if known else "of given parameters"
            return f"Cell {number} of {path.name} raised:"
    return f"{path.name} raised:"


def publish(executed: Path) -> None:
    """Write the executed notebook as HTML; neither file holds a secret."""
    import nbconvert

    if not executed.exists():
        return
    text = executed.read_text(encoding="utf-8")
    if (clean := without_secrets(text)) != text:
        executed.write_text(clean, encoding="utf-8")
        print(f"A token stood in {executed.name}; it is replaced by ***.")
    page, _ = nbconvert.HTMLExporter().from_filename(str(executed))
    page = without_secrets(page)  # a token may be written otherwise in HTML
    executed.with_suffix(".html").write_text(page, encoding="utf-8")


def without_secrets(text: str) -> str:
    """The text with the tokens of this environment, or any Hub token, replaced."""
    for secret in (os.environ.get(name, "").strip() for name in SECRETS):
        if len(secret) >= 8:
            for written in (secret, json.dumps(secret)[1:-1], html.escape(secret)):
                text = text.replace(written, "***")
    return hub.scrub(text, None)


def whole_model(workspace: Path) -> bool:
    """Whether 02 has trained every weight, so that there is no adapter to merge."""
    return recipe(workspace, "adapters", "my-adapter").get("method") == "full"


def new_folder(out: Path) -> Path:
    """A folder named by the time; two runs of one second get two."""
    try:
        while (folder := out.absolute() / time.strftime("%Y%m%d-%H%M%S")).exists():
            time.sleep(0.1)
        folder.mkdir(parents=True)
    except OSError as error:
        raise CourseError(f"Nothing can be written to {out}: {error}.") from error
    return folder


def point_latest(folder: Path) -> None:
    """Make `latest` beside the run's folder point to it, in one step."""
    link, temporary = folder.parent / "latest", folder.parent / f".latest-{folder.name}"
    try:
        temporary.symlink_to(folder.name)
        temporary.replace(link)
    except OSError as error:
        print(f"{link} is not updated ({error}); the newest run is {folder}.")


def run_course(options: argparse.Namespace) -> int:
    """Run the notebooks, write and print the summary; 0, or 1 after a failure."""
    paths = chosen(options.folder, options.notebooks)
    given = {"MODEL": existing_path(options.model)}
    if options.dataset:
        given["DATASET"] = existing_path(options.dataset)
    extra = dict(options.parameters)
    known = known_parameters(paths, extra)
    given |= extra
    folder = new_folder(options.out)
    # One that is given may hold what earlier notebooks made.
    workspace = Path(os.environ.get("WORKSPACE") or folder / "workspace").absolute()
    os.environ |= {
        "WORKSPACE": str(workspace),
        "HEADLESS": "1",
        # Threads that wait don't spin, or a busy machine takes many times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a warning at each kernel's start
    }
    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    print(
        f"run {folder}",
        without_secrets(", ".join(f"{k} = {v!r}" for k, v in given.items())),
        sep="\n",
    )
    runs: dict[str, Any] = {}
    failure = None
    try:
        with this_interpreter():
            for number, path in enumerate(paths, start=1):
                print(f"[{number}/{len(paths)}] {path.stem} ...", flush=True)
                if path.stem.startswith("04") and whole_model(workspace):
                    print("      left out: full fine-tuning leaves nothing to merge")
                    continue
                mine = {k: v for k, v in given.items() if k in known[path]}
                runs[path.stem] = run_notebook(path, folder / path.name, mine)
                if failure := runs[path.stem].pop("failure"):
                    page = (folder / path.name).with_suffix(".html")
                    print(without_secrets(f"\n{failure}\n\nAll of it: {page}"))
                    break
    finally:
        summary = summarise(workspace, runs)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        point_latest(folder)
        print(table(summary))
        print(f"\nsummary: {folder / 'summary.json'}")
    return 1 if failure else 0


def main(arguments: list[str] | None = None) -> int:
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
        print(without_secrets(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # The cell that was running would be reported once more, with its traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
