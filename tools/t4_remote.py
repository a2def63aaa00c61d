"""Run the course on the machine that `tools.t4` rented, and pack what it makes.

    python -m tools.t4_remote FOLDER --notebooks 01 02 --rivals trl

`tools.t4` starts this program on a Colab runtime, as a process that goes on if the
connection breaks. The run writes to FOLDER/results. After each change there, this
program packs the small files into FOLDER/pieces/<number>.tar.gz, and FOLDER/state.json
names that archive. So each finished notebook can be brought back at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BROUGHT_BACK = (
    "machine.json",
    "runs/[0-9]*/*.ipynb",
    "runs/[0-9]*/*.html",
    "runs/[0-9]*/summary.json",
    "workspace/*/*/README.md",
    "workspace/*/*/recipe.json",
    "workspace/*/*/training_log.json",
)
LARGEST = 32 * 2**20  # bytes of a file that is brought back
EVERY = 5.0  # seconds between two looks at the results


def files(results: Path) -> list[Path]:
    """Return the finished files to bring back: no weights, no rows of a dataset.

    A notebook is finished when it has its HTML, which is written after it.
    """
    found = [path for pattern in BROUGHT_BACK for path in results.glob(pattern)]
    return sorted(
        path
        for path in found
        if path.stat().st_size <= LARGEST
        and (path.suffix != ".ipynb" or path.with_suffix(".html").exists())
    )


class Packer(threading.Thread):
    """Pack the results whenever they change; `failed` names the steps that failed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.end = folder, threading.Event()
        self.failed: list[str] = []
        self.number, self.packed = 0, ""
        self.piece: dict[str, Any] = {}
        (folder / "pieces").mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Look at the results every few seconds until `finish`."""
        while not self.end.wait(EVERY):
            self.pack()

    def pack(self) -> None:
        """Pack all finished files, unless they are those of the last archive."""
        results = self.folder / "results"
        names = files(results)
        seen = [(str(path), path.stat().st_mtime_ns) for path in names]
        if not names or str(seen) == self.packed:
            return
        path = self.folder / "pieces" / f"{self.number + 1}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                tar.add(name, name.relative_to(results))
        self.packed, self.number = str(seen), self.number + 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.piece = {"number": self.number, "path": str(path), "sha256": digest}
        self.write(done=False)

    def write(self, done: bool) -> None:
        """Write state.json, which `tools.t4` reads, in one step."""
        state = {"done": done, "failed": self.failed, "piece": self.piece}
        temporary = self.folder / "state.json.part"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.folder / "state.json")

    def finish(self) -> None:
        """Pack the last files and write that the run is over."""
        self.end.set()
        self.join()
        self.pack()
        self.write(done=True)


def machine(commit: str) -> dict[str, Any]:
    """Return what the run is measured on: GPU, image, packages."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version"]
    try:
        query += ["--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        gpu = ""
    freeze = [sys.executable, "-m", "pip", "freeze"]
    packages = subprocess.run(freeze, capture_output=True, text=True).stdout
    return {
        "gpu": gpu or "none",
        "commit": commit,
        "colab": os.environ.get("COLAB_RELEASE_TAG"),
        "python": platform.python_version(),
        "packages": packages.splitlines(),
    }


def pip(*arguments: str) -> None:
    """Install packages; raises subprocess.CalledProcessError after pip's own output."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, *arguments], check=True)


def set_up() -> None:
    """Install the package of this commit, what Colab lacks, and papermill.

    Outside Colab nothing is installed, as in the notebooks' set-up cell.
    """
    if "COLAB_RELEASE_TAG" not in os.environ:
        print("set-up: nothing to do outside Colab")
        return
    pip(str(ROOT))
    install = "from colab_utils import install; install.missing()"
    subprocess.run([sys.executable, "-c", install], check=True, cwd=ROOT)
    pins = (ROOT / "requirements.txt").read_text()
    pip(*re.findall(r"^papermill==\S+$", pins, re.MULTILINE))


def course(options: argparse.Namespace, results: Path) -> None:
    """Run the notebooks; raises subprocess.CalledProcessError if one fails."""
    command = [sys.executable, "-m", "tools.run_course", "--out", str(results / "runs")]
    command += ["--notebooks", *options.notebooks, "--model", options.model]
    if options.dataset:
        command += ["--dataset", options.dataset]
    if options.parameters:
        command += ["--parameters", *options.parameters]
    environment = {**os.environ, "WORKSPACE": str(results / "workspace")}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def rival(name: str, options: argparse.Namespace, results: Path) -> None:
    """Train the course's rows with another trainer, and score its adapter.

    Raises subprocess.CalledProcessError if a step fails.
    """
    dataset = results / "workspace" / "datasets" / "my-dataset"
    out = results / "workspace" / "adapters" / name
    environment = {**os.environ, "HEADLESS": "1", "TQDM_DISABLE": "1"}
    if name == "unsloth":
        packages = options.out / "unsloth"
        pins = ROOT / "bench" / "rivals" / "unsloth.txt"
        pip("--target", str(packages), "--requirement", str(pins))
        environment["PYTHONPATH"] = f"{packages}{os.pathsep}{ROOT}"
    given = dict(pair.partition("=")[::2] for pair in options.parameters)
    command = [sys.executable, "bench/rivals/train.py", name, str(dataset), str(out)]
    command += ["--model", options.model, "--epochs", given.get("EPOCHS", "3")]
    command += ["--seed", given.get("SEED", "0")]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    score = [sys.executable, "bench/rivals/score.py", str(out), str(dataset)]
    environment["PYTHONPATH"] = str(ROOT)  # Colab's own packages, as for the course
    subprocess.run(score, check=True, cwd=ROOT, env=environment)


def main(arguments: list[str] | None = None) -> int:
    """Run all steps, also after one that fails; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--notebooks", nargs="+", required=True)
    parser.add_argument("--dataset", default="")
    parser.add_argument("--model", required=True)
    parser.add_argument("--parameters", nargs="*", default=[])
    parser.add_argument("--rivals", nargs="*", default=[])
    options = parser.parse_args(arguments)
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    packer = Packer(options.out)
    packer.start()
    steps: list[tuple[str, Any]] = [
        ("set-up", set_up),
        ("course", lambda: course(options, results)),
    ]
    for name in options.rivals:
        steps.append((name, lambda name=name: rival(name, options, results)))
    try:
        for name, step in steps:
            print(f"== {name} ({time.strftime('%H:%M:%S', time.gmtime())} UTC)")
            try:
                step()
            except (subprocess.CalledProcessError, OSError) as error:
                packer.failed.append(name)
                print(f"== {name} failed: {error}")
            if name == "set-up":
                (results / "machine.json").write_text(
                    json.dumps(machine(options.commit), indent=1)
                )
                if packer.failed:
                    break
    finally:
        packer.finish()
    return 1 if packer.failed else 0


if __name__ == "__main__":
    sys.exit(main())
