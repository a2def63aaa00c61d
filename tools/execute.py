"""Execute a notebook headless, and keep it as HTML without secrets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from colab_utils.runtime import GIB
from tools import scrubbing
from tools.course_report import claims

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def use_this_interpreter() -> Iterator[None]:
    """Let the kernel `python3` be this Python, whatever kernels are installed."""
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(os.path.join(folder, "kernels", "python3"))
        before = os.environ.get("JUPYTER_PATH", "")
        os.environ["JUPYTER_PATH"] = f"{folder}{os.pathsep}{before}".strip(os.pathsep)
        yield


def load_papermill() -> ModuleType:
    """Import papermill, without the checks of addresses that its parts never use.

    papermill imports nbformat, which imports jsonschema, which compiles a grammar of
    international addresses for three seconds. Without its module, jsonschema works as
    it does where this optional package is not installed.
    """
    cast("dict[str, ModuleType | None]", sys.modules).setdefault("rfc3987_syntax", None)
    import papermill

    return papermill


class PeakMemory(threading.Thread):
    """Sample the resident memory of all child processes; `gib` is their peak sum."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib, self.stop = 0.0, threading.Event()

    def run(self) -> None:
        """Sample ten times a second until `stop` is set."""
        import psutil

        children: list[psutil.Process] = []
        for sample in itertools.count():
            if self.stop.wait(0.1):
                return
            if sample % 5 == 0:  # finding the children reads every process
                children = psutil.Process().children(recursive=True)
            total = 0
            for process in children:
                with contextlib.suppress(psutil.Error):  # it has ended
                    total += process.memory_info().rss
            self.gib = max(self.gib, total / GIB)


def run_notebook(path: Path, executed: Path, parameters: dict[str, Any]) -> dict:
    """Execute one notebook; returns its seconds, peak memory, claims and failure."""
    papermill = load_papermill()
    from nbclient.exceptions import DeadKernelError

    memory, start, failure = PeakMemory(), time.perf_counter(), None
    clean = scrubbing.Clean()
    papermill.iorw.papermill_io.register(str(executed), clean)
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
            "The kernel died without an error, most often because the memory ran out: "
            f"the peak was {memory.gib:.1f} GiB. Try a smaller model or shorter rows."
        )
    finally:
        memory.stop.set()
        memory.join()
        seconds = round(time.perf_counter() - start, 1)
        write_html(executed)
        if clean.found:
            print(f"{executed.name} contained a token; it is replaced by ***.")
    result = {"seconds": seconds, "peak_rss_gib": round(memory.gib, 2)}
    return {**result, "claims": claims(executed), "failure": failure}


def failing_cell(path: Path, executed: Path) -> str:
    """Name the cell that raised, by its number in the original notebook."""
    ids = [cell.get("id") for cell in json.loads(path.read_bytes())["cells"]]
    for cell in json.loads(executed.read_bytes())["cells"]:
        if any(out["output_type"] == "error" for out in cell.get("outputs", [])):
            known = cell.get("id") in ids
            number = ids.index(cell["id"]) + 1 if known else "of given parameters"
            return f"Cell {number} of {path.name} raised:"
    return f"{path.name} raised:"


def write_html(executed: Path) -> None:
    """Write the executed notebook as HTML, without secrets."""
    import nbconvert

    if executed.exists():
        page, _ = nbconvert.HTMLExporter().from_filename(str(executed))
        page = scrubbing.remove(page)  # its pictures and scripts came with it
        executed.with_suffix(".html").write_text(page, encoding="utf-8")
