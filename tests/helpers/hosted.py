"""Machines like those of Colab and Kaggle: Python, packages, variables and folders.

`make colab-double` installs the packages of Colab's image once. Each machine has links
to them, and copies of those that pip may remove: pip never follows a link out of a
machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / ".colab-double"
STAND_INS = ROOT / "tests" / "helpers" / "google_colab"
ADDRESS = "https://github.com/someone/course"
# The closed port of a machine without a network.
NOWHERE = "http://127.0.0.1:9"
TOKEN = "hf_" + "doubleDOUBLE" * 3


@dataclass(frozen=True)
class Place:
    """What a host sets: the variables, the working folder, the reader's secrets."""

    name: str
    folder: Path
    variables: dict[str, str]


COLAB = Place(
    "colab",
    Path("/content"),
    {
        "COLAB_RELEASE_TAG": "release-colab_20260819-060000_RC00",
        "COLAB_DOUBLE_SECRETS": json.dumps(
            {"huggingface": {"exists": True, "access": True, "payload": TOKEN}}
        ),
    },
)
KAGGLE = Place(
    "kaggle",
    Path("/kaggle/working"),
    {
        # Kaggle's image is built on Colab's, whose variable stays.
        "COLAB_RELEASE_TAG": "release-colab_20260819-060000_RC00",
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
        "KAGGLE_USER_SECRETS_TOKEN": "a JWT",
        "KAGGLE_DOUBLE_SECRETS": json.dumps({"HF_TOKEN": TOKEN}),
    },
)
PLACES = (COLAB, KAGGLE)
# Where Kaggle shows the outputs of notebooks that were added as input.
KAGGLE_INPUTS = Path("/kaggle/input/notebooks")


@dataclass
class Machine:
    """A machine of a place. `course` is the repository that pip finds at ADDRESS."""

    place: Place
    home: Path
    course: str
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Copy the packages, and let git find the course."""
        own = DOUBLE / "kaggle" if self.place is KAGGLE else None
        link_packages(DOUBLE / "image", self.home / "python", own)
        self.go_to(self.course)

    @property
    def python(self) -> Path:
        return self.home / "python" / "bin" / "python"

    def go_to(self, course: str) -> None:
        """Let git find another repository at ADDRESS."""
        text = f'[url "{course}"]\n\tinsteadOf = {ADDRESS}\n'
        (self.home / "gitconfig").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the kernel: none of this test run except pip's and the path.

        In particular neither HEADLESS nor CI: a person sits in front of the page.
        """
        kept = ("PATH", "LANG", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "SSL_CERT_FILE")
        own = {name: os.environ[name] for name in kept if name in os.environ}
        own |= {name: v for name, v in os.environ.items() if name.startswith("PIP_")}
        return own | {
            "HOME": str(self.home),
            "PIP_CACHE_DIR": str(DOUBLE / "pip-cache"),
            "GIT_CONFIG_GLOBAL": str(self.home / "gitconfig"),
            "PYTHONPATH": str(STAND_INS),
            "COLAB_DOUBLE_WAIT": "0.5",
            # A debugger that nobody uses prints a warning at each start.
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            **self.place.variables,
            **self.variables,
        }

    def pip(self, *arguments: str) -> str:
        """Run pip on the machine, and return what it prints."""
        done = subprocess.run(
            [self.python, "-m", "pip", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def packages(self) -> dict[str, str]:
        """Return the installed versions; the course's is the address it came from."""
        lines = self.pip("freeze", "--all").splitlines()
        pairs = (line.replace(" @ ", "==").split("==") for line in lines)
        return {name: version for name, version in pairs}

    def run(self, cells: list[Any], timeout: int = 900) -> Any:
        """Run the cells in a new kernel; return the executed notebook.

        It stops at the first error, whose cell is the last one with outputs.
        """
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from nbformat.v4 import new_notebook

        spec = self.home / "kernels" / "python3"
        spec.mkdir(parents=True, exist_ok=True)
        launch = [str(self.python), "-m", "ipykernel_launcher", "-f"]
        launch.append("{connection_file}")
        text = {"argv": launch, "display_name": "Python 3", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(text))
        specs = KernelSpecManager(kernel_dirs=[str(spec.parent)])
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        notebook = new_notebook(cells=cells)
        self.place.folder.mkdir(parents=True, exist_ok=True)
        resources = {"metadata": {"path": str(self.place.folder)}}
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=timeout,
            resources=resources,
            coalesce_streams=True,
        )
        start = time.perf_counter()
        with contextlib.suppress(CellExecutionError):
            client.execute(env=self.environment)
        notebook.metadata["seconds"] = round(time.perf_counter() - start, 1)
        return notebook


def link_packages(image: Path, machine: Path, own: Path | None) -> None:
    """Make an environment that has the packages of another one, without copying GBs.

    `own` is a folder with packages that replace those of the image.
    """
    (machine / "bin").mkdir(parents=True)
    for name in ("python", "python3", "python3.13"):
        (machine / "bin" / name).symlink_to((image / "bin" / name).resolve())
    shutil.copy2(image / "pyvenv.cfg", machine)
    inside = Path("lib", "python3.13", "site-packages")
    (machine / inside).mkdir(parents=True)
    paths = {path.name: path for path in (image / inside).iterdir()}
    if own:
        names = {path.name.partition("-")[0] for path in own.iterdir()}
        paths = {n: p for n, p in paths.items() if n.partition("-")[0] not in names}
        paths |= {path.name: path for path in own.iterdir()}
    for name, path in paths.items():
        if name.startswith("torchao"):  # the set-up cell removes it
            shutil.copytree(path, machine / inside / name)
        elif name not in ("__pycache__", "bin", "share", "etc"):
            (machine / inside / name).symlink_to(path)


def publish(folder: Path, tag: bool = True) -> Path:
    """Copy the project to a repository with ADDRESS in its notebooks, as a fork would.

    It has the files of this working tree, committed or not, and the tag of its version.
    """
    listed = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "remote", "add", "origin", ADDRESS)
    badges = [sys.executable, "-m", "tools.notebooks", "badges", "--root", str(folder)]
    subprocess.run(badges, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "Publish")
    if tag:
        from tools.notebook_addresses import package_version

        git(folder, "tag", f"v{package_version(folder)}")
    return folder


def git(folder: Path, *arguments: str) -> None:
    """Run git in a repository of the test."""
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def cells(course: Path, name: str, **parameters: object) -> list[Any]:
    """Return the cells of a published notebook; `name` may be its number.

    `parameters` stand in a cell after the notebook's own, as papermill writes them.
    """
    import nbformat
    from nbformat.v4 import new_code_cell

    (path,) = (course / "notebooks").glob(f"{Path(name).stem}*.ipynb")
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        found.append(cell)
        if parameters and "parameters" in cell.metadata.get("tags", []):
            lines = [f"{name} = {value!r}" for name, value in parameters.items()]
            found.append(new_code_cell("\n".join(lines)))
    return found


def printed(cell: Any) -> str:
    """Return what a cell wrote to stdout and stderr."""
    outputs = cell.get("outputs", [])
    return "".join(out["text"] for out in outputs if out["output_type"] == "stream")


def error(cell: Any) -> Any:
    """Return the error that a cell ended with, or None."""
    outputs = cell.get("outputs", [])
    return next((out for out in outputs if out["output_type"] == "error"), None)
