"""One run on a rented runtime: start it, follow it, and bring back its results."""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tools.t4_colab import MARK, Colab, ColabError, CutError, SessionEndedError

POLL = 20.0  # seconds between two looks: each look also keeps the runtime awake
CHUNK = 50_000  # bytes of the log in one look
PATIENCE = 900.0  # seconds without a connection after which we give up
T = TypeVar("T")

# This code runs in the runtime's kernel. `with_values` puts its values before it.
GPU = """
import json, subprocess
query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
try:
    name = subprocess.run(query, capture_output=True, text=True).stdout.strip()
except OSError:
    name = ""
print(mark + json.dumps({"gpu": name or "no GPU"}))
"""

# The process is not a child of a cell: it goes on if the connection breaks. A second
# call finds its number, so a broken connection does not start two.
START = """
import json, os, pathlib, subprocess, sys, tarfile
folder = pathlib.Path(folder)
course = folder / "course"
course.mkdir(parents=True, exist_ok=True)
if not (folder / "pid").exists():
    with tarfile.open(archive) as tar:
        tar.extractall(course, filter="data")
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tools.t4_remote", *arguments],
            cwd=course, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | {"PYTHONPATH": str(course)},
        )
    (folder / "pid").write_text(str(process.pid))
print(mark + json.dumps({"started": True}))
"""

LOOK = """
import json, os, pathlib
folder = pathlib.Path(folder)
def alive(number):
    try:
        return os.waitpid(number, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        pass
    try:
        os.kill(number, 0)
    except OSError:
        return False
    return True
try:
    found = {"missing": False, "alive": alive(int((folder / "pid").read_text()))}
    state = folder / "state.json"
    found |= json.loads(state.read_text()) if state.exists() else {}
    with open(folder / "log.txt", "rb") as log:
        log.seek(offset)
        text = log.read(chunk)
    text = text[: text.rfind(b"\\n") + 1] or text
    found |= {"text": text.decode("utf-8", "replace"), "offset": offset + len(text)}
except FileNotFoundError:
    found = {"missing": True}
print(mark + json.dumps(found))
"""


def with_values(code: str, **values: Any) -> str:
    """Return the code with lines before it that assign the values."""
    lines = [f"{name} = {value!r}" for name, value in {**values, "mark": MARK}.items()]
    return "\n".join(lines) + code


class Run:
    """The run in `remote`/free-gpu-t4 of a runtime; its results come to `folder`."""

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder, self.base = folder, remote
        self.remote = f"{remote}/free-gpu-t4"
        self.offset, self.piece = 0, 0

    def check_gpu(self, colab: Colab) -> None:
        """Raise ColabError unless the runtime has a T4.

        The CLI shows the GPU that was asked for, so the runtime itself is asked.
        """
        name = keep_trying(colab.run, with_values(GPU))["gpu"]
        if "T4" not in name:
            raise ColabError(
                f"Colab gave a runtime with {name} instead of a T4. Next: try again in "
                "an hour."
            )
        print(f"GPU: {name}")

    def start(
        self, colab: Colab, archive: Path, commit: str, options: argparse.Namespace
    ) -> None:
        """Copy the course to the runtime and start it there."""
        there = f"{self.base}/course-{commit[:12]}.tar.gz"
        keep_trying(colab.upload, archive, there)
        dataset = options.dataset
        if dataset and (local := Path(dataset).expanduser()).is_file():
            dataset = f"{self.base}/{local.name}"
            keep_trying(colab.upload, local, dataset)
        arguments = [self.remote, "--commit", commit, "--model", options.model]
        arguments += ["--notebooks", *options.notebooks, "--dataset", dataset]
        arguments += ["--parameters", *options.parameters, "--rivals", *options.rivals]
        code = with_values(
            START, folder=self.remote, archive=there, arguments=arguments
        )
        keep_trying(colab.run, code)
        print(f"started: commit {commit[:12]}; Ctrl-C ends it and the runtime")

    def watch(self, colab: Colab) -> list[str]:
        """Follow the run to its end; returns the names of the steps that failed.

        The log goes to log.txt and to the screen, and each new archive is unpacked.
        Raises ColabError if the runtime or the connection is lost.
        """
        while True:
            found = keep_trying(self.look, colab)
            if found.get("done") and not found["text"]:
                return found["failed"]
            if not found["alive"] and not found.get("done"):
                raise ColabError(
                    "The run died on the T4, most often because its 12.7 GB of RAM ran "
                    f"out. See the end of {self.folder / 'log.txt'}."
                )
            if not found.get("done") and len(found["text"]) < CHUNK // 2:
                time.sleep(POLL)

    def look(self, colab: Colab) -> dict[str, Any]:
        """Return how the run is, after its log and its newest archive are here.

        A download that fails may be a runtime that was replaced after it was asked, so
        the caller tries both again. Raises CutError, or SessionEndedError if the
        runtime was replaced.
        """
        values = {"folder": self.remote, "offset": self.offset, "chunk": CHUNK}
        found = colab.run(with_values(LOOK, **values))
        if found["missing"]:
            raise SessionEndedError(
                "Colab has replaced the runtime by an empty one. Next: try again."
            )
        self.log(found)
        if found.get("piece", {}).get("number", 0) > self.piece:
            self.fetch(colab, found["piece"])
        return found

    def log(self, found: dict[str, Any]) -> None:
        """Add new text of the remote log to log.txt, and print it."""
        self.offset = found["offset"]
        print(found["text"], end="", flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(found["text"])

    def fetch(self, colab: Colab, piece: dict[str, Any]) -> None:
        """Download an archive of results, check it, and unpack it.

        Raises CutError if it is damaged. What an earlier archive brought stays.
        """
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "piece.tar.gz"
            colab.download(piece["path"], path)
            if hashlib.sha256(path.read_bytes()).hexdigest() != piece["sha256"]:
                raise CutError("A download was incomplete.")
            with tarfile.open(path) as tar:
                tar.extractall(self.folder, filter="data")
        self.piece = piece["number"]

    def brought_back(self) -> str:
        """Return what has been brought back, for the last line of the output."""
        notebooks = sorted(path.stem for path in self.folder.glob("runs/*/*.ipynb"))
        names = ", ".join(notebooks) or "no executed notebook"
        return f"{names}, in {self.folder}"


def keep_trying(call: Callable[..., T], *arguments: Any) -> T:
    """Call until the connection holds; after PATIENCE seconds raise its CutError."""
    deadline, pause, said = time.monotonic() + PATIENCE, 5.0, False
    while True:
        try:
            result = call(*arguments)
        except CutError as error:
            if time.monotonic() + pause > deadline:
                raise
            if not said:
                print(f"{error} Trying for {PATIENCE / 60:.0f} minutes ...", flush=True)
            said = True
            time.sleep(pause)
            pause = min(2 * pause, 60.0)
        else:
            if said:
                print("connected again", flush=True)
            return result
