"""Notebooks 01 to 04 on machines like those of Colab and Kaggle, as a reader runs them.

HEADLESS is unset: the notebooks ask for secrets and Drive, and show their widgets.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from helpers import hosted
from helpers.hosted import COLAB, KAGGLE, cells, error, printed

pytestmark = pytest.mark.slow
# From data to a model. 06 and 13 do nothing that is special on Colab or Kaggle.
COURSE = [path.name for path in sorted((hosted.ROOT / "notebooks").glob("0[1-4]*"))]
WIDGET = "application/vnd.jupyter.widget-view+json"


def keep(place: hosted.Place, name: str, notebook) -> None:
    """Keep an executed notebook for a look at it: .colab-double/executed/."""
    folder = hosted.DOUBLE / "executed" / place.name
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / name)


# The only parameters that are not the defaults, which need a GPU and a network.
DEMO = {name: {"MODEL": "demo"} for name in ("01", "02")}
# A short training is enough to see that the notebooks hand over their files. The model
# does not learn to end an answer in it, so there are few rows.
SHORT = {
    "01": {"MODEL": "demo", "MAX_ROWS": 120},
    # As many processes as Kaggle has GPUs; here they share the CPU.
    "02": {"MODEL": "demo", "EPOCHS": 0.3, "GPUS": 2},
}


def run_all(machine: hosted.Machine, course: Path, name: str, parameters: dict):
    """Run a notebook to its end; return its executed cells."""
    notebook = machine.run(cells(course, name, **parameters.get(name[:2], {})))
    keep(machine.place, name, notebook)
    failed = [cell for cell in notebook.cells if error(cell)]
    assert not failed, f"{name}: {failed[0].source}\n{error(failed[0])['evalue']}"
    assert hosted.TOKEN not in json.dumps(notebook)
    print(f"{machine.place.name} {name}: {notebook.metadata['seconds']} s")
    return notebook.cells


def all_text(executed) -> str:
    return "".join(printed(cell) for cell in executed if cell.cell_type == "code")


def boxes(executed) -> int:
    """Count the widgets that are more than a progress bar: planner and chat box."""
    shown = [
        out.get("data", {}) for cell in executed for out in cell.get("outputs", [])
    ]
    return sum(WIDGET in out and "VBox(" in out["text/plain"] for out in shown)


def check_course(first: Path, second: Path, fourth: Path) -> None:
    """Compare the workspaces of 01, 02 and 04 with what the demo world promises."""
    dataset = json.loads((first / "datasets/my-dataset/recipe.json").read_text())
    assert dataset["kind"] == "dataset"
    adapter = json.loads((second / "adapters/my-adapter/recipe.json").read_text())
    assert adapter["versions"]["torch"].startswith("2.11.0")  # Colab's, not ours
    model = fourth / "models" / "my-llama"
    assert (model / "model.safetensors").is_file()


def test_course_on_colab(course, new_machine, tmp_path):
    """Each notebook has a machine of its own; Drive is all that they share."""
    drive = tmp_path / "drive"
    drive.mkdir()
    for name in COURSE:
        machine = new_machine(COLAB, COLAB_DOUBLE_DRIVE_FOLDER=str(drive))
        executed = run_all(machine, course, name, DEMO)
        assert "Mounted at /content/drive" in all_text(executed)
        assert boxes(executed) == name.startswith(("02", "03"))
    check_course(*[drive / "llama-workspace"] * 3)
    recipe = drive / "llama-workspace" / "adapters" / "my-adapter" / "recipe.json"
    (results,) = json.loads(recipe.read_text())["results"].values()
    assert results["tuned"] > 0.9 and results["base"] < 0.2, results


def test_course_on_kaggle(course, new_machine):
    """Each notebook has a session of its own, with the outputs of the earlier ones.

    A reader saves a version of each notebook, and adds it to the next (Add Input).
    """
    for name in COURSE:
        machine = new_machine(KAGGLE)
        executed = run_all(machine, course, name, SHORT)
        text = all_text(executed)
        assert "Drive" not in text
        assert ("training runs in 2 processes" in text) == name.startswith("02")
        assert boxes(executed) == name.startswith(("02", "03"))
        outputs = hosted.KAGGLE_INPUTS / "somebody" / Path(name).stem
        shutil.rmtree(outputs, ignore_errors=True)  # of a test run that was killed
        outputs.parent.mkdir(parents=True, exist_ok=True)
        KAGGLE.folder.rename(outputs)
    written = hosted.KAGGLE_INPUTS / "somebody"
    check_course(*(next(written.glob(f"{n}*/workspace")) for n in ("01", "02", "04")))
