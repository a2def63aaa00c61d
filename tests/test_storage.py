"""Where the workspace is kept: Drive on Colab, the notebook's output on Kaggle."""

from __future__ import annotations

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.processes import PLACES, run

from colab_utils import storage
from colab_utils.workspace import Workspace

DOUBLES = Path(__file__).resolve().parent / "helpers" / "google_colab"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Remove the variables that say where this runs; leave the project's clone."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    return folder


# --- the environment variable, and a machine of one's own ----------------------------


def test_open_elsewhere_says_nothing_about_drive(tmp_path, capsys):
    assert Workspace.open(True).folder == tmp_path / "workspace"
    assert capsys.readouterr().out == f"workspace: {tmp_path / 'workspace'}\n"


@pytest.mark.parametrize("colab", [True, False])
def test_open_with_the_environment_variable(tmp_path, monkeypatch, capsys, colab):
    if colab:
        monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSPACE", "~/a/b")
    assert Workspace.open(use_drive=True).folder == tmp_path / "home" / "a" / "b"
    ignored = "USE_DRIVE = True is ignored: the environment variable WORKSPACE decides"
    assert (capsys.readouterr().out.splitlines()[0] == ignored) == colab
    monkeypatch.setenv("WORKSPACE", "relative")
    assert Workspace.open().folder == tmp_path / "relative"


# --- Colab ---------------------------------------------------------------------------


@pytest.fixture
def colab(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")


def test_open_on_colab_without_drive(tmp_path, colab, capsys):
    opened = Workspace.open(False)
    assert opened.folder == tmp_path / "workspace" and opened.scratch is None
    line = (
        f"workspace: {opened.folder}, deleted with this machine: set USE_DRIVE = True"
    )
    assert capsys.readouterr().out == f"{line} to keep it\n"
    with pytest.raises(FileNotFoundError) as error:
        opened.find("datasets", "mine")
    assert str(error.value).endswith(
        "\nOn Colab each notebook has its own machine: set USE_DRIVE = True in both "
        "notebooks, and run the other one again."
    )


def test_open_drive_when_headless(tmp_path, colab, monkeypatch, capsys):
    monkeypatch.setenv("HEADLESS", "1")
    assert Workspace.open(True).folder == tmp_path / "workspace"
    ignored, where = capsys.readouterr().out.splitlines()
    assert ignored == (
        "USE_DRIVE = True is ignored: mounting Drive asks for access, and this run is "
        "headless"
    )
    assert where.endswith("deleted with this machine")  # USE_DRIVE would not help


def on_drive(tmp_path: Path, code: str, drive: str) -> list[str]:
    """Run code on Colab, with Drive mounted below `tmp_path`; return its lines.

    The last line of standard error counts, too.
    """
    (tmp_path / "content").mkdir(exist_ok=True)
    (tmp_path / "mine").mkdir(exist_ok=True)
    head = (
        "import pathlib\n"
        "from colab_utils import storage\n"
        "from colab_utils.workspace import Workspace\n"
        f"storage.DRIVE = pathlib.Path({str(tmp_path / 'content' / 'drive')!r})\n"
    )
    result = run(
        head + code,
        DOUBLES,
        COLAB_RELEASE_TAG="x",
        COLAB_DOUBLE_DRIVE=drive,
        COLAB_DOUBLE_DRIVE_FOLDER=str(tmp_path / "mine"),
    )
    return result.stdout.splitlines() + result.stderr.splitlines()[-1:]


def test_open_drive_is_mounted_once(tmp_path):
    drive = tmp_path / "content" / "drive"
    folder = drive / "MyDrive" / "llama-workspace"
    code = (
        "first = Workspace.open(True)\n"
        "print(first.new('models', 'mine'), first.scratch == pathlib.Path.cwd())\n"
        "print(Workspace.open(True).folder)"
    )
    assert on_drive(tmp_path, code, "allowed,failed") == [
        f"Mounted at {drive}",
        f"workspace: {folder}",
        f"{folder / 'models' / 'mine'} True",
        f"workspace: {folder}",
        str(folder),
    ]
    assert (tmp_path / "mine" / "llama-workspace").is_dir()


def test_find_missing_on_drive_says_what_the_other_notebook_needs(tmp_path):
    *_, last = on_drive(
        tmp_path, "Workspace.open(True).find('datasets', 'mine')", "allowed"
    )
    assert last == (
        "It must have run with USE_DRIVE = True and the same Google account. Drive may "
        "need a minute to show new files."
    )


def test_drive_is_where_colab_mounts_it():
    assert str(storage.DRIVE) == "/content/drive"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("refused", "access was not allowed. Run the cell again and allow it in the w"),
        ("slow", "Drive did not answer in time. Run the cell again: the second try of"),
        ("forbidden", "your organization does not allow Drive on Colab. Use a private"),
        (
            "failed",
            "mount failed. Or set USE_DRIVE = False: then the files are lost wh",
        ),
        ("files", "/content/drive holds files that were written there while Drive was"),
    ],
)
def test_open_drive_denied_says_what_to_do(tmp_path, answer, sentence):
    if answer == "files":
        (tmp_path / "content" / "drive").mkdir(parents=True)
        (tmp_path / "content" / "drive" / "mine.txt").touch()
        answer = "allowed"
    *_, last = on_drive(tmp_path, "Workspace.open(True)", answer)
    assert last.startswith(
        f"RuntimeError: Google Drive could not be mounted: {sentence}"
    )
    assert "set USE_DRIVE = False: then the files are lost" in last


def test_open_drive_after_a_refusal(tmp_path):
    code = (
        "for _ in range(2):\n"
        "    try:\n"
        "        print(Workspace.open(True).folder.name)\n"
        "    except RuntimeError as error:\n"
        "        print('denied')\n"
    )
    lines = on_drive(tmp_path, code, "refused,allowed")
    assert (lines[0], lines[-1]) == ("denied", "llama-workspace")


# --- Kaggle --------------------------------------------------------------------------


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(storage, "KAGGLE", tmp_path)
    return tmp_path


def test_open_on_kaggle(kaggle, capsys):
    opened = Workspace.open(True)
    assert opened.folder == kaggle / "working" / "workspace"
    assert opened.scratch == Path(tempfile.gettempdir())
    assert capsys.readouterr().out == (
        f"workspace: {opened.folder}; to keep it: Save Version with its output. The "
        "next notebook finds it after Add Input > Your Work > this notebook\n"
    )
    with pytest.raises(FileNotFoundError, match="add it here: Add Input > Your Work"):
        opened.find("datasets", "mine")


@pytest.mark.parametrize("user", ["", "notebooks/somebody"])
def test_find_on_kaggle_in_another_notebooks_output(kaggle, user, capsys):
    output = kaggle / "input" / user / "create-a-dataset" / "workspace"
    made = finished(output / "datasets" / "mine")
    opened = Workspace.open()
    capsys.readouterr()
    assert opened.find("datasets", "mine") == made
    assert capsys.readouterr().out == f"datasets/mine is read from {made}\n"
    with pytest.raises(FileNotFoundError, match="set DATASET_NAME to one of: mine"):
        opened.find("datasets", "other")
    own = finished(opened.folder / "datasets" / "mine")  # this notebook's own wins
    assert opened.find("datasets", "mine") == own
    assert capsys.readouterr().out == ""


# --- a model that is larger than Drive -----------------------------------------------


def test_with_room(tmp_path, monkeypatch, capsys):
    place = storage.Place(tmp_path / "drive", scratch=tmp_path / "disk")
    place.folder.mkdir()
    opened = Workspace(place.folder, place)
    folder = opened.new("models", "mine")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * 2**30))
    assert opened.with_room(folder, 2 * 2**30) == folder
    assert Workspace(place.folder).with_room(folder, 3 * 2**30) == folder
    assert capsys.readouterr().out == ""
    other = opened.with_room(folder, 3 * 2**30)
    assert other == tmp_path / "disk" / "models" / "mine" and other.parent.is_dir()
    line = capsys.readouterr().out
    assert line.startswith(f"mine takes 3.0 GiB, and {place.folder} has 2.0 GiB free.")
    assert "set HUB_NAME" in line and len(line.splitlines()) == 1
