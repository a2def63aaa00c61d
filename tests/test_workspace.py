"""The workspace: where it is, what is found in it, and what is never replaced."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from helpers.processes import PLACES
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import locks, replacement, workspace
from colab_utils.workspace import Workspace


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Remove the variables that say where this runs; leave the project's clone."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


# --- the workspace -------------------------------------------------------------------


def test_open_next_to_the_notebook(tmp_path, capsys):
    assert Workspace.open().folder == tmp_path / "workspace"
    assert (tmp_path / "workspace").is_dir()
    assert capsys.readouterr().out == f"workspace: {tmp_path / 'workspace'}\n"
    opened = Workspace.open()
    capsys.readouterr()
    opened.new("datasets", "mine")
    assert capsys.readouterr().out == ""  # it is printed once, where it is opened


def test_open_at_the_root_of_a_clone(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "colab_utils").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert Workspace.open().folder == tmp_path / "workspace"


def test_open_ignores_another_project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert Workspace.open().folder == tmp_path / "inner" / "workspace"


@pytest.mark.parametrize("case", ["a file", "under a file", "read-only"])
def test_open_unwritable(case, tmp_path, monkeypatch):
    (tmp_path / "taken").touch()
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o500)
    # A superuser may write to the read-only folder; no user can create one in /proc.
    read_only = sealed if os.geteuid() else Path("/proc")
    path = {
        "a file": tmp_path / "taken",
        "under a file": tmp_path / "taken" / "workspace",
        "read-only": read_only / "workspace",
    }[case]
    monkeypatch.setenv("WORKSPACE", str(path))
    with pytest.raises(
        OSError, match=r"cannot be used: .*variable WORKSPACE"
    ) as caught:
        Workspace.open()
    assert str(path) in str(caught.value)


def test_open_read_only(tmp_path, monkeypatch):
    path = tmp_path / "sealed"
    path.mkdir(mode=0o500)
    if not os.geteuid():
        path = Path("/proc/self")
    monkeypatch.setenv("WORKSPACE", str(path))
    if os.access(path, os.W_OK):
        pytest.skip("a superuser may write everywhere here")
    with pytest.raises(OSError, match="read-only"):
        Workspace.open()


# --- handing over between notebooks --------------------------------------------------


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    return folder


def test_find_a_finished_artifact(tmp_path):
    made = finished(tmp_path / "workspace" / "adapters" / "my-adapter")
    assert Workspace.open().find("adapters", "my-adapter") == made


@pytest.mark.parametrize(
    ("kind", "notebook", "parameter"),
    [
        ("datasets", "01_create_dataset", "DATASET_NAME"),
        ("adapters", "02_finetune_qlora", "ADAPTER_NAME"),
        ("models", "04_merge_and_publish", "MODEL_NAME"),
        ("reports", "12_evaluate", "REPORT_NAME"),
    ],
)
def test_find_missing_says_what_to_run(tmp_path, kind, notebook, parameter):
    with pytest.raises(FileNotFoundError) as caught:
        Workspace.open().find(kind, "mine")
    message = str(caught.value)
    assert notebook in message and "does not exist" in message
    assert "has no finished one" in message and parameter not in message

    finished(tmp_path / "workspace" / kind / "zebra")
    finished(tmp_path / "workspace" / kind / "aardvark")
    (tmp_path / "workspace" / kind / "mine").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        Workspace.open().find(kind, "mine")
    message = str(caught.value)
    assert notebook in message and "recipe.json is missing" in message
    assert f"set {parameter} to one of: aardvark, zebra" in message


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../mine", "a/b", "a\\b", "/etc", "a..b", "a\0b", "a" * 81],
)
def test_find_refuses_a_name_that_is_not_plain(name):
    with pytest.raises(ValueError, match="DATASET_NAME"):
        Workspace.open().find("datasets", name)


@settings(deadline=None)  # it looks at the disk
@given(st.text() | st.text(alphabet="./\\ a"))
def test_find_never_leaves_the_workspace(name):
    try:
        path = Workspace.open().find("datasets", name)
    except (ValueError, FileNotFoundError):
        return
    raise AssertionError(f"{name!r} found {path}")


def test_new_and_find_read_a_name_however_it_is_typed(tmp_path):
    opened = Workspace.open()
    made = finished(tmp_path / "workspace" / "adapters" / "my-adapter")
    for name in ("my-adapter", " my-adapter ", '"my-adapter"', "“my-adapter”"):
        assert opened.find("adapters", name) == opened.new("adapters", name) == made
    assert opened.new("adapters", 7).name == "7"  # papermill's -p NAME 7


def test_find_unknown_kind():
    with pytest.raises(ValueError, match="datasets, adapters, models"):
        Workspace.open().find("dataset", "mine")


# --- parameters and names -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", ".", "..", "../x", "a/b", "a\\b", "a\nb", ".x", "x.part", None),
        *("🦙" * 51, "x" * 81, "\ud800"),
    ],
)
def test_new_and_find_refuse_a_name_that_is_not_plain(headless, name):
    for find in (Workspace.open().new, Workspace.open().find):
        with pytest.raises(ValueError, match=r"ADAPTER_NAME = .* is not a plain name"):
            find("adapters", name)


def test_new_never_replaces_foreign_work(headless):
    folder = Workspace.open().new("models", "mine")
    assert folder == headless / "models" / "mine" and not folder.exists()
    folder.mkdir(parents=True)
    assert Workspace.open().new("models", "mine") == folder
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"Choose another MODEL_NAME"):
        Workspace.open().new("models", "mine")
    (folder / "recipe.json").write_text("{}")  # a model that stands there is replaced
    assert Workspace.open().new("models", "mine") == folder


# --- replacing a folder ---------------------------------------------------------------


def made(folder, text: str):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(text)
    return folder


def test_replace_a_whole_folder(tmp_path):
    folder = made(tmp_path / "mine", "old")
    (folder / "more").write_text("x")
    made(tmp_path / ".mine.old", "of a run that was killed while it deleted this")
    replacement.replace(made(tmp_path / "new", "new"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in folder.iterdir()] == ["recipe.json"]
    assert (folder / "recipe.json").read_text() == "new"


@pytest.mark.parametrize("ask", ["find", "new"])
def test_find_and_new_restore_after_a_killed_replacement(headless, ask):
    made(headless / "models" / ".mine.old", "old")
    folder = getattr(Workspace.open(), ask)("models", "mine")
    assert (folder / "recipe.json").read_text() == "old"
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_replace_keeps_what_is_named(tmp_path):
    folder = made(tmp_path / "mine", "old")
    for name in ("kept", "dropped"):
        (folder / name).mkdir()
    new = made(tmp_path / "new", "new")
    replacement.replace(new, folder, keep=["kept"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert {path.name for path in folder.iterdir()} == {"kept", "recipe.json"}
    assert (folder / "recipe.json").read_text() == "new"


def test_restore_of_a_kept_file_never_overwrites(tmp_path):
    """A kept file that found its place taken gets a name with the date."""
    folder = made(tmp_path / "mine", "new")
    (folder / "notes").write_text("new")
    (tmp_path / ".mine.kept").mkdir()
    (tmp_path / ".mine.kept" / "notes").write_text("kept")
    replacement.restore(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (folder / "notes").read_text() == "new"
    (kept,) = folder.glob("notes.*")
    assert kept.read_text() == "kept"


def replacing(folder, step: str) -> None:
    """Leave files as they are within `replacement.replace`, between two renames."""
    old = made(folder, "old")
    if step == "moved":
        old.rename(folder.with_name(".mine.old"))
    kept = folder.with_name(".mine.kept")
    kept.mkdir()
    (kept / "notes").write_text("of the user")


@pytest.mark.parametrize("step", ["kept", "moved"])
def test_find_leaves_a_folder_alone_that_another_process_replaces(headless, step):
    """Putting it back would make that process fail, or delete what it keeps."""
    opened, folder = Workspace.open(), headless / "models" / "mine"
    replacing(folder, step)
    before = sorted(folder.parent.rglob("*"))
    found = []

    def find() -> None:
        found.append((opened.find("models", "mine") / "recipe.json").read_text())

    reader = threading.Thread(target=find)
    with locks.locked(folder):
        reader.start()
        reader.join(0.3)
        names = sorted(p for p in folder.parent.rglob("*") if p.name[-5:] != ".lock")
        assert names == before and found == (["old"] if step == "kept" else [])
        if step == "moved":
            replacement.restore(folder)
    reader.join()
    assert found == ["old"]


def test_reading_notices_that_the_folder_is_replaced(tmp_path):
    folder = made(tmp_path / "mine", "old")
    with replacement.reading(folder):
        (folder / "recipe.json").read_text()

    def replace_twice() -> None:  # the inode of the first folder could be free again
        for name in ("new", "newer"):
            replacement.replace(made(tmp_path / name, name), folder)

    replaced = pytest.raises(RuntimeError, match="mine was replaced by another process")
    with replaced, replacement.reading(folder):
        replace_twice()


def test_replace_puts_the_old_folder_back_if_the_new_one_cannot_be_moved(tmp_path):
    folder = made(tmp_path / "mine", "old")
    (folder / "notes").write_text("of the user")
    with pytest.raises(FileNotFoundError):
        replacement.replace(tmp_path / "new", folder, keep=["notes"])
    assert {path.name for path in folder.iterdir()} == {"notes", "recipe.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_new_reports_a_finished_result(headless, capsys):
    opened = Workspace.open()
    made(headless / "adapters" / "mine", "{}")
    capsys.readouterr()
    opened.new("adapters", "mine")
    text = capsys.readouterr().out
    assert text.startswith("adapters/mine is finished, and stays until")
    assert text.endswith("choose another ADAPTER_NAME.\n")
    opened.new("adapters", "another")
    assert capsys.readouterr().out == ""


def test_new_after_checkpoints_were_set_aside(headless):
    """Killed before the new checkpoints exist, the folder is still the course's."""
    folder = headless / "adapters" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    workspace.set_aside(folder / "checkpoints", "another run")
    assert Workspace.open().new("adapters", "mine") == folder


# --- what may be replaced -------------------------------------------------------------


def test_check_replaceable_refuses_foreign_files(tmp_path):
    folder = made(tmp_path / "mine", "{}")
    (folder / "thesis.tex").write_text("years of work")
    rule = {"parameter": "MODEL_NAME", "marks": ("recipe.json",)}
    workspace.check_replaceable(folder, **rule)
    message = r"holds thesis.tex, which was not written by the course.*MODEL_NAME"
    with pytest.raises(FileExistsError, match=message):
        workspace.check_replaceable(folder, **rule, files={"recipe.json"})
    (folder / "recipe.json").unlink()
    with pytest.raises(FileExistsError, match="holds something that was not written"):
        workspace.check_replaceable(folder, **rule)


@pytest.mark.parametrize("state", ["missing", "empty"])
def test_check_replaceable_accepts_what_holds_nothing(tmp_path, state):
    if state == "empty":
        (tmp_path / "mine").mkdir()
    workspace.check_replaceable(tmp_path / "mine", "MODEL_NAME", ("recipe.json",))


def test_check_replaceable_refuses_a_file(tmp_path):
    (tmp_path / "mine").write_text("text")
    with pytest.raises(FileExistsError, match="Choose another MODEL_NAME"):
        workspace.check_replaceable(tmp_path / "mine", "MODEL_NAME", ("recipe.json",))


@pytest.mark.parametrize("where", [".", "base", "base/deep"])
def test_check_replaceable_refuses_a_folder_with_an_input(tmp_path, where):
    folder = made(tmp_path / "mine", "{}")
    (folder / where).mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileExistsError, match="which is read here"):
        workspace.check_replaceable(
            folder, "MODEL_NAME", ("recipe.json",), inputs=[folder / where]
        )


def test_discard_empties_files_before_it_deletes_them(tmp_path, monkeypatch):
    """A trash that keeps what is deleted, as Drive's does, receives empty files."""
    other, folder = tmp_path / "other", tmp_path / "mine"
    other.mkdir()
    (folder / "more").mkdir(parents=True)
    for name in ("weights", "twice"):
        (other / name).write_bytes(b"kept")
    for file in ("a.safetensors", "more/b.json"):
        (folder / file).write_bytes(b"12345")
    (folder / "link").symlink_to(other / "weights")
    (folder / "linked").symlink_to(other)
    (folder / "twice").hardlink_to(other / "twice")
    trash = tmp_path / "trash"
    monkeypatch.setattr(shutil, "rmtree", lambda path, *_: path.rename(trash))
    workspace.discard(folder)
    sizes = {f: (trash / f).stat().st_size for f in ("a.safetensors", "more/b.json")}
    assert sizes == {"a.safetensors": 0, "more/b.json": 0} and not folder.exists()
    assert (other / "weights").read_bytes() == (other / "twice").read_bytes() == b"kept"


def test_discard_of_a_missing_folder(tmp_path):
    workspace.discard(tmp_path / "none", ignore_errors=True)
    with pytest.raises(FileNotFoundError):
        workspace.discard(tmp_path / "none")
