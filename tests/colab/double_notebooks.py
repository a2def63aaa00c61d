"""All notebooks on machines like those of Colab and Kaggle, as a reader runs them.

HEADLESS is unset: the notebooks ask for secrets and Drive, and show their widgets.
"""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from helpers import hosted
from helpers.hosted import COLAB, KAGGLE, cells, error, printed

pytestmark = pytest.mark.slow
COURSE = [path.name for path in sorted((hosted.ROOT / "notebooks").glob("*.ipynb"))]
WIDGET = "application/vnd.jupyter.widget-view+json"


def keep(place: hosted.Place, name: str, notebook) -> None:
    """Keep an executed notebook for a look at it: .colab-double/executed/."""
    folder = hosted.DOUBLE / "executed" / place.name
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / name)


def run_all(machine: hosted.Machine, course: Path, name: str, **parameters: object):
    """Run a notebook to its end; return its executed cells."""
    notebook = machine.run(cells(course, name, **parameters))
    keep(machine.place, name, notebook)
    failed = [cell for cell in notebook.cells if error(cell)]
    assert not failed, f"{name}: {failed[0].source}\n{error(failed[0])['evalue']}"
    text = json.dumps(notebook)
    assert hosted.TOKEN not in text
    print(f"{machine.place.name} {name}: {notebook.metadata['seconds']} s")
    return notebook.cells


def all_text(executed) -> str:
    return "".join(printed(cell) for cell in executed if cell.cell_type == "code")


def widgets_shown(executed) -> int:
    outputs = [out for cell in executed for out in cell.get("outputs", [])]
    return sum(WIDGET in out.get("data", {}) for out in outputs)


def check_course(workspace: Path) -> None:
    """Compare what the notebooks wrote with what the demo world promises."""
    dataset = workspace / "datasets" / "my-dataset"
    assert json.loads((dataset / "recipe.json").read_text())["kind"] == "dataset"
    adapter = json.loads((workspace / "adapters/my-adapter/recipe.json").read_text())
    results = next(iter(adapter["results"].values()))
    assert results["tuned"] > 0.9 and results["base"] < 0.2, results
    model = workspace / "models" / "my-llama"
    assert (model / "model.safetensors").is_file()
    assert list(model.rglob("*.gguf"))


def test_course_on_colab(course, new_machine, tmp_path):
    """Each notebook has a machine of its own; Drive is all that they share."""
    drive = tmp_path / "drive"
    drive.mkdir()
    for name in COURSE:
        machine = new_machine(COLAB, COLAB_DOUBLE_DRIVE_FOLDER=str(drive))
        executed = run_all(machine, course, name, USE_DRIVE=True)
        assert "Mounted at /content/drive" in all_text(executed)
        if name.startswith("03"):
            assert widgets_shown(executed) >= 1
    check_course(drive / "llama-workspace")


def test_course_on_kaggle(course, new_machine):
    machine = new_machine(KAGGLE)
    for name in COURSE:
        executed = run_all(machine, course, name)
        assert "Drive" not in all_text(executed)
    check_course(KAGGLE.folder / "workspace")
