"""Write the notebooks canonically, check their shape, set their addresses.

    python -m tools.notebooks format    # strip outputs, format code, keep cell ids
    python -m tools.notebooks check     # name every problem and its fix; 1 on any
    python -m tools.notebooks badges    # badges, set-up cells and the README's table

The `.ipynb` is the only source of a notebook. CONTRIBUTING.md explains the rules.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.notebook_addresses import (
    PLACEHOLDER,
    Release,
    address_problems,
    package_version,
    replace_links,
    repository_address,
    set_address,
)
from tools.notebook_shape import Finding, shape
from tools.notebook_tables import NotebookError, set_table

ROOT = Path(__file__).resolve().parents[1]
RUFF = [sys.executable, "-m", "ruff"]

NOTEBOOK_METADATA: dict[str, Any] = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kaggle": {
        "accelerator": "nvidiaTeslaT4",
        "isGpuEnabled": True,
        "isInternetEnabled": True,
        "language": "python",
        "sourceType": "notebook",
    },
    "kernelspec": {"display_name": "Python 3", "name": "python3"},
    "language_info": {"name": "python"},
}
# Colab and Kaggle open these without a GPU: its free hours are for the others.
WITHOUT_GPU: tuple[str, ...] = ("00_start_here", "01_create_dataset")
WITHOUT_GPU += ("13_create_from_documents", "18_long_documents")
# These use several GPUs, or none: Kaggle has two, and Colab has one.
SEVERAL_GPUS = ("17_large_models",)
CELL_METADATA = ("_kg_hide-input", "cellView", "tags")
# These name the project's own address. Model cards take it from the package.
NAMING = ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def notebook_paths(root: Path) -> list[Path]:
    """List the course's notebooks in order; NotebookError if there are none."""
    paths = sorted((root / "notebooks").glob("*.ipynb"))
    if not paths:
        raise NotebookError("notebooks: no notebooks found; fix: git restore notebooks")
    return paths


def read(path: Path) -> dict:
    """Read a notebook as plain JSON, with each cell's source as one string."""
    try:
        nb = json.loads(path.read_bytes())
        if nb["nbformat"] != 4:
            raise ValueError(f"nbformat is {nb['nbformat']}, not 4")
        for cell in nb["cells"]:
            cell["source"] = "".join(cell["source"])
            cell.setdefault("metadata", {})
    except (ValueError, KeyError, TypeError) as error:
        fix = "save it again from Jupyter, or finish the git merge"
        what = f"notebooks/{path.name}: not a notebook ({error}); fix: {fix}"
        raise NotebookError(what) from error
    return nb


def dump(nb: dict) -> str:
    """Return the text as Jupyter writes a notebook: sorted keys, indent 1."""
    cells = [{**c, "source": c["source"].splitlines(True)} for c in nb["cells"]]
    nb = {**nb, "cells": cells}
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def canonical(nb: dict, path: Path) -> dict:
    """Return the notebook without outputs and run metadata; code formatted, ids kept.

    Raises NotebookError on code that does not parse.
    """
    # Colab inserts its own badge cell when it saves to GitHub; ours is in the title.
    cells = [
        cell
        for cell in nb["cells"]
        if cell["source"].strip() and "view-in-github" not in _ids(cell)
    ]
    taken = {cell_id for cell in cells for cell_id in _ids(cell)}
    given: set[str] = set()
    result = []
    for cell in cells:
        free = [cell_id for cell_id in _ids(cell) if cell_id not in given]
        metadata = cell["metadata"]
        new = {
            "cell_type": cell["cell_type"],
            "id": free[0] if free else _new_id(cell["source"], taken),
            "metadata": {k: metadata[k] for k in CELL_METADATA if metadata.get(k)},
            "source": cell["source"],
        }
        if cell["cell_type"] == "code":
            new |= {"execution_count": None, "outputs": []}
        elif cell.get("attachments"):
            new["attachments"] = cell["attachments"]
        given.add(new["id"])
        result.append(new)
    nb = {"cells": result, "nbformat": 4, "nbformat_minor": 5}
    nb["metadata"] = dict(NOTEBOOK_METADATA)
    if path.stem in WITHOUT_GPU + SEVERAL_GPUS:
        del nb["metadata"]["accelerator"]
        nb["metadata"]["colab"] = {"provenance": []}
    if path.stem in WITHOUT_GPU:
        kaggle = {"accelerator": "none", "isGpuEnabled": False}
        nb["metadata"]["kaggle"] = NOTEBOOK_METADATA["kaggle"] | kaggle
    return _formatted(nb, path)


def _ids(cell: dict) -> list[str]:
    """Return the valid ids of a cell: its own, and Colab's in the metadata."""
    ids = (cell.get("id"), cell["metadata"].get("id"))
    return [i for i in ids if isinstance(i, str) and CELL_ID.fullmatch(i)]


def _new_id(source: str, taken: set[str]) -> str:
    """Return an id that depends only on the cell's source and the ids in use."""
    attempt = 0
    while (
        new := hashlib.sha256(f"{attempt}{source}".encode()).hexdigest()[:8]
    ) in taken:
        attempt += 1
    taken.add(new)
    return new


def _formatted(nb: dict, path: Path) -> dict:
    """Return the notebook with its code cells as `ruff format` writes them."""
    command = [*RUFF, "format", "--quiet", "--stdin-filename", str(path), "-"]
    done = subprocess.run(
        command, input=dump(nb), capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise NotebookError(f"{done.stderr.strip()}; fix: correct the cell")
    for cell, new in zip(nb["cells"], json.loads(done.stdout)["cells"], strict=True):
        if cell["cell_type"] == "code":
            cell["source"] = "".join(new["source"])
    return nb


def format_notebooks(root: Path) -> None:
    """Write each notebook canonically; NotebookError on code that does not parse."""
    for path in notebook_paths(root):
        _write(path, dump(canonical(read(path), path)))


def write_badges(root: Path) -> None:
    """Write address and version into badges, links, set-up cells and the README.

    The placeholder also goes out of the files that name the project's own address.
    """
    address, source = repository_address(root)
    release = Release(address, package_version(root))
    tag = f"v{release.version}"
    print(f"address {address}, from {source}")
    paths = notebook_paths(root)
    old = {path.name: read(path) for path in paths}
    notebooks = {n: set_address(nb, n, old, release) for n, nb in old.items()}
    readme = root / "README.md"
    text = replace_links(readme.read_text(encoding="utf-8"), set(notebooks), address)
    table = set_table(text, notebooks, address)
    for path in paths:
        _write(path, dump(canonical(notebooks[path.name], path)))
    _write(readme, table)
    for own in filter(Path.exists, (root / name for name in NAMING)):
        _write(own, own.read_text(encoding="utf-8").replace(PLACEHOLDER, address))
    if address == PLACEHOLDER:
        print(
            f"{address} is a placeholder: no badge opens, and on Colab and Kaggle the "
            "set-up cells refuse to run. When the repository is on GitHub: git remote "
            "add origin https://github.com/OWNER/NAME, then make badges again"
        )
        return
    print(
        f"On Colab and Kaggle the notebooks install {tag} of {address}. If GitHub has "
        f"no such tag: git tag {tag} && git push origin {tag}"
    )


def _write(path: Path, text: str) -> None:
    if path.read_bytes() != text.encode():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.name}")


def check(root: Path) -> list[str]:
    """List all problems of notebooks and README as `path:cell: what; fix: how`."""
    root = root.resolve()
    try:
        paths = notebook_paths(root)
        notebooks = {path.name: read(path) for path in paths}
    except NotebookError as error:
        return [str(error)]
    problems = []
    for path in paths:
        nb = notebooks[path.name]
        for cell, what, fix in [*canonical_findings(path, nb), *shape(nb)]:
            place = path.name if cell is None else f"{path.name}:{cell}"
            problems.append(f"notebooks/{place}: {what}; fix: {fix}")
    return problems + address_problems(root, notebooks) + lint_problems(root, paths)


def canonical_findings(path: Path, nb: dict) -> list[Finding]:
    """List how the file differs from what `format` would write."""
    try:
        wanted = canonical(nb, path)
    except NotebookError:
        return []  # code that does not parse: lint_problems names the line
    if path.read_bytes() == dump(wanted).encode():
        return []
    if len(nb["cells"]) != len(wanted["cells"]):
        return [(None, "has empty cells, or Colab's own badge cell", "make format")]
    findings: list[Finding] = []
    pairs = zip(nb["cells"], wanted["cells"], strict=True)
    for number, (cell, want) in enumerate(pairs, start=1):
        keys = sorted(k for k in {*cell, *want} if cell.get(k) != want.get(k))
        if keys:
            what = f"not canonical: {', '.join(keys)}"
            findings.append((number, what, "make format"))
    if {**nb, "cells": 0} != {**wanted, "cells": 0}:
        one = path.stem not in WITHOUT_GPU + SEVERAL_GPUS
        gpu = "not asking for a T4" if one else "asking for a GPU"
        findings.append((None, f"metadata not canonical, or {gpu}", "make format"))
    layout = (None, "JSON not laid out as Jupyter writes it", "make format")
    return findings or [layout]


def lint_problems(root: Path, paths: list[Path]) -> list[str]:
    """List undefined and unused names, and code that does not parse, with ruff."""
    command = [*RUFF, "check", "--isolated", "--no-cache", "--select=F"]
    command += ["--output-format=json", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode > 1:
        raise NotebookError(f"ruff check failed: {done.stderr.strip()}")
    return [
        f"notebooks/{Path(found['filename']).name}:{found['cell']}: "
        f"{found['message']} (line {found['location']['row']}); fix: correct the cell"
        for found in json.loads(done.stdout)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["format", "check", "badges"])
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    options = parser.parse_args(arguments)
    try:
        if options.task == "check":
            problems = check(options.root)
            print("\n".join(problems) or "notebooks ok")
            return 1 if problems else 0
        {"format": format_notebooks, "badges": write_badges}[options.task](options.root)
    except (NotebookError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
