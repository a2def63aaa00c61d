"""tools.notebook_addresses: badges, set-up cells, links and the README's table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers.notebook_project import NAME, PYPROJECT, README, VERSION, good, save, tool

import colab_utils
from colab_utils import install
from tools import notebook_addresses as addresses
from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remote", "address", "source"),
    [
        ("https://github.com/fork/course.git", "fork/course", "git remote"),
        ("https://github.com/fork/a.b-c_d/", "fork/a.b-c_d", "git remote"),
        ("git@github.com:fork/course.git", "fork/course", "git remote"),
        ("ssh://git@github.com/fork/course", "fork/course", "git remote"),
        ("https://me:s3cret@github.com/fork/course", "fork/course", "git remote"),
        ("https://example.org/mirror/course.git", "first/course", "pyproject"),
        ("/srv/git/course.git", "first/course", "pyproject"),
        (None, "first/course", "pyproject"),
    ],
)
def test_badges_follow_git_remote(
    project: Path, capsys, remote: str | None, address: str, source: str
) -> None:
    git(project, "init", "--quiet")
    if remote:
        git(project, "remote", "add", "origin", remote)
    assert notebooks.check(project) == []  # before: all agree on first/course
    assert tool(project, "badges") == 0
    printed = capsys.readouterr().out
    assert f"address {address}, from" in printed
    assert source in printed
    assert "s3cret" not in printed
    assert notebooks.check(project) == []
    cells = json.loads((project / "notebooks" / NAME).read_text())["cells"]
    link = f"/github/{address}/blob/main/notebooks/{NAME}"
    assert link in "".join(cells[0]["source"])
    kaggle = f"/kernels/welcome?src=https://github.com/{address}/blob/main/notebooks/"
    assert f"{kaggle}{NAME})" in "".join(cells[0]["source"])
    assert f'"git+https://github.com/{address}@v{VERSION}"' in "".join(
        cells[1]["source"]
    )
    readme = (project / "README.md").read_text()
    assert f"| [Count to six](notebooks/{NAME}) | You count things. | [![Open" in readme
    assert link in readme and f"{kaggle}{NAME})" in readme
    assert readme.endswith("\n\nThe end.\n")


def test_repository_address_ignores_surrounding_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "remote", "add", "origin", "https://github.com/some/body")
    inner = tmp_path / "course"
    inner.mkdir()
    (inner / "pyproject.toml").write_text(PYPROJECT)
    assert addresses.repository_address(inner) == ("first/course", "pyproject.toml")


def test_repository_address_missing(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(addresses.NotebookError, match="Repository = "):
        addresses.repository_address(tmp_path)


def test_badges_replace_only_own_links(project: Path) -> None:
    path = project / "notebooks" / NAME
    own = f"https://colab.research.google.com/github/first/course/blob/main/{NAME}"
    other = (
        "https://github.com/ggml-org/llama.cpp, https://github.com/first/courses and "
        "https://colab.research.google.com/github/a/b/blob/main/examples/x.ipynb"
    )
    text = f"See {own}, https://github.com/first/course.git, {other}."
    nb = nbformat.read(path, as_version=4)
    nb.cells[6].source = text
    save(project, nb)
    readme = project / "README.md"
    readme.write_text(f"git clone https://github.com/first/course\n{other}\n{README}")
    git(project, "init", "--quiet")
    git(project, "remote", "add", "origin", "https://github.com/fork/course2")
    assert tool(project, "badges") == 0
    moved = nbformat.read(path, as_version=4).cells[6].source
    assert moved == text.replace("first/course/", "fork/course2/").replace(
        "first/course.git", "fork/course2.git"
    )
    assert other in readme.read_text()
    # The clone line's README had no link yet that says which address is ours.
    assert "fork/course2/blob/main" in readme.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (NAME, "/first/course/blob", "/other/course/blob", "is not the one of"),
        (NAME, f"main/notebooks/{NAME}", "main/notebooks/02_x.ipynb", ":1: badge"),
        (NAME, "/blob/main/", "/blob/dev/", ":1: badge"),
        (NAME, "installs what", "installs all", ":2: set-up cell"),
        (NAME, "git+https://github.com/first", "git+https://github.com/x", ":2: set-"),
        (
            NAME,
            f"@v{VERSION}",
            "@v3.2",
            ":2: set-up cell is not the one of first/course",
        ),
        ("README.md", "You count things.", "You juggle.", "README.md: table"),
        ("README.md", "<!-- notebooks -->", "", "README.md: no table"),
    ],
)
def test_check_finds_address_that_disagrees(
    project: Path, file: str, old: str, new: str, expected: str
) -> None:
    path = project / ("README.md" if file == "README.md" else f"notebooks/{file}")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    problems = notebooks.check(project)
    assert any(expected in problem for problem in problems), problems
    assert all("make badges" in problem for problem in problems), problems


def test_badges_add_missing_badge_and_setup_cell(project: Path) -> None:
    nb = good()
    del nb.cells[1]
    save(project, nb, "02_new.ipynb")
    problems = notebooks.check(project)
    assert any("02_new.ipynb: no set-up cell" in problem for problem in problems)
    assert tool(project, "badges") == 0
    assert notebooks.check(project) == []
    first, second = (
        json.loads((project / "notebooks" / name).read_text())["cells"][1]
        for name in (NAME, "02_new.ipynb")
    )
    assert first["source"] == second["source"]
    hidden = {"cellView": "form", "_kg_hide-input": True}
    assert second["metadata"] == {**hidden, "tags": ["setup"]}


def test_check_finds_link_to_missing_notebook(project: Path) -> None:
    link = "https://colab.research.google.com/github/first/course/blob/main/no.ipynb"
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    nb.cells[20].source = f"## Next\n\n[Go on]({link})."
    save(project, nb)
    (problem,) = notebooks.check(project)
    assert f"{NAME}:21: link to main/no.ipynb" in problem


def test_check_without_readme(project: Path) -> None:
    (project / "README.md").unlink()
    assert notebooks.check(project) == [
        "README.md: missing; fix: write it, then make badges"
    ]


PLACES = ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"]


class Machine:
    """Run the set-up cell of an address with a pip that ends as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: str | None) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.has_course = False
        self.status, self.stderr = 0, ""
        for name in PLACES:
            monkeypatch.delenv(name, raising=False)
        if place:
            monkeypatch.setenv(place, "1")
        found = {True: object(), False: None}
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: found[self.has_course]
        )
        monkeypatch.setattr(subprocess, "run", self.pip)
        monkeypatch.setattr(install, "missing", lambda: self.calls.append("missing"))

    def pip(self, command: list[str], env: dict[str, str], **options: bool) -> object:
        assert options == {"capture_output": True, "text": True}
        self.commands.append(command)
        self.environments.append(env)
        return subprocess.CompletedProcess(command, self.status, "", self.stderr)

    def set_up(self, address: str = "fork/course") -> None:
        exec(addresses.SETUP.format(address=address, version=VERSION), {})


def test_setup_cell_does_nothing_elsewhere(monkeypatch) -> None:
    machine = Machine(monkeypatch, None)
    machine.set_up()
    machine.set_up(addresses.PLACEHOLDER)
    assert machine.commands == machine.calls == []


@pytest.mark.parametrize("place", PLACES)
def test_setup_cell_installs_package_then_what_is_missing(monkeypatch, place) -> None:
    machine = Machine(monkeypatch, place)
    machine.set_up()
    package = f"git+https://github.com/fork/course@v{VERSION}"
    assert machine.commands == [
        [sys.executable, "-m", "pip", "install", "--no-deps", package]
    ]
    # Without it, git asks for a name and a password if the repository is missing.
    assert machine.environments[0]["GIT_TERMINAL_PROMPT"] == "0"
    assert "GIT_TERMINAL_PROMPT" not in os.environ
    assert machine.calls == ["missing"]


def test_setup_cell_keeps_installed_package(monkeypatch) -> None:
    machine = Machine(monkeypatch, "COLAB_RELEASE_TAG")
    machine.has_course = True
    machine.set_up()
    machine.set_up(addresses.PLACEHOLDER)
    assert machine.commands == []
    assert machine.calls == ["missing", "missing"]


@pytest.mark.parametrize("place", PLACES)
def test_setup_cell_refuses_placeholder_before_pip(monkeypatch, place) -> None:
    machine = Machine(monkeypatch, place)
    with pytest.raises(
        RuntimeError, match=r"no address yet: .* must run `make badges`"
    ):
        machine.set_up(addresses.PLACEHOLDER)
    assert machine.commands == machine.calls == []


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("fatal: unable to access 'https://github.com/': Could not", "On Kaggle: ver"),
        ("setuptools>=77 (from versions: none)", "No network: GitHub or PyPI"),
        ("× git checkout -q v1.2.3 did not run successfully.", "public and has this"),
        ("ERROR: No space left on device", f"{VERSION}: ERROR: No space left"),
    ],
)
def test_setup_cell_after_failed_pip(monkeypatch, stderr, expected) -> None:
    machine = Machine(monkeypatch, "KAGGLE_KERNEL_RUN_TYPE")
    machine.status, machine.stderr = 1, stderr
    with pytest.raises(RuntimeError) as raised:
        machine.set_up()
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value) and machine.calls == []


@pytest.mark.parametrize("address", ["a/b", addresses.PLACEHOLDER, f"{'o' * 39}/long"])
def test_setup_cell_is_formatted_with_any_address(address: str) -> None:
    """`make format` must not change the cell that `make badges` writes."""
    source = addresses.SETUP.format(address=address, version=VERSION)
    assert len(source.splitlines()) <= 35
    command = [*notebooks.RUFF, "format", "--quiet", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.stdout.rstrip("\n") == source, done.stderr


# --- the placeholder -----------------------------------------------------------------


def test_placeholder_cannot_be_registered() -> None:
    """GitHub's names have letters, digits and single hyphens, none at an end."""
    owner = addresses.PLACEHOLDER.split("/")[0]
    assert not re.fullmatch(r"[a-z\d]+(-[a-z\d]+)*", owner, re.IGNORECASE)
    assert f"{addresses.PLACEHOLDER.split('/')[0][-1]}/" == "-/"


def test_check_finds_placeholder_on_github(project: Path, monkeypatch) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    path = project / "pyproject.toml"
    path.write_text(PYPROJECT.replace("first/course", addresses.PLACEHOLDER))
    assert tool(project, "badges") == 0
    assert notebooks.check(project) == []  # a clone on somebody's machine
    monkeypatch.setenv("GITHUB_REPOSITORY", "some/one")
    (problem,) = notebooks.check(project)
    assert f"the address is {addresses.PLACEHOLDER}, a placeholder" in problem
    assert "fix: make badges in a clone of some/one" in problem
    git(project, "init", "--quiet")
    git(project, "remote", "add", "origin", "https://github.com/some/one")
    assert tool(project, "badges") == 0
    assert notebooks.check(project) == []
    assert path.read_text() == PYPROJECT.replace("first/course", "some/one")


def test_badges_with_placeholder_print_what_to_do(project: Path, capsys) -> None:
    path = project / "pyproject.toml"
    path.write_text(PYPROJECT.replace("first/course", addresses.PLACEHOLDER))
    assert tool(project, "badges") == 0
    printed = capsys.readouterr().out
    assert "git remote add origin https://github.com/OWNER/NAME" in printed
    assert "git push" not in printed


def test_setup_cells_install_the_version_of_the_package() -> None:
    paths = notebooks.notebook_paths(ROOT)
    for path in paths:
        cells = notebooks.read(path)["cells"]
        (setup,) = (
            c["source"] for c in cells if "setup" in c["metadata"].get("tags", [])
        )
        tags = set(re.findall(r"github\.com/[\w./-]+@v([\w.]+)", setup))
        assert tags == {colab_utils.__version__}, path.name


def test_badges_print_the_tag_to_push(project: Path, capsys) -> None:
    assert tool(project, "badges") == 0
    printed = capsys.readouterr().out
    assert f"install v{VERSION} of first/course" in printed
    assert f"git tag v{VERSION} && git push origin v{VERSION}" in printed


@pytest.mark.parametrize("text", ["", "__version__ = 1", None])
def test_badges_without_version(project: Path, capsys, text: str | None) -> None:
    init = project / "colab_utils" / "__init__.py"
    init.unlink() if text is None else init.write_text(text)
    assert tool(project, "badges") == 1
    assert "no version; fix: write __version__ =" in capsys.readouterr().err
