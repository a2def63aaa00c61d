"""tools.notebook_addresses: badges, set-up cells, links and the README's table."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from helpers.notebook_project import NAME, PYPROJECT, README, VERSION, good, save, tool

import colab_utils
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
    assert f'"git+https://github.com/{address}@v{VERSION}"' in "".join(
        cells[1]["source"]
    )
    readme = (project / "README.md").read_text()
    assert f"| [Count to six](notebooks/{NAME}) | You count things. | [![Open" in readme
    assert link in readme
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
    assert second["metadata"] == {"cellView": "form", "tags": ["setup"]}


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


def test_setup_cell_installs_only_on_colab(monkeypatch) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    source = addresses.SETUP.format(address="first/course", version=VERSION)
    assert len(source.splitlines()) <= 12
    program = TransformerManager().transform_cell(source)

    def no_magic() -> None:
        raise AssertionError("the set-up cell installed something")

    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    exec(program, {"get_ipython": no_magic})
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="installed"):
        exec(program, {"get_ipython": no_magic})


class FailingShell:
    """IPython in which every magic fails as pip does: it prints, and does not raise."""

    def run_line_magic(self, name: str, line: str) -> None:
        print(f"ERROR: %{name} {line}")


def test_setup_cell_after_failed_pip_says_what_to_do(monkeypatch, capsys) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    source = addresses.SETUP.format(address="fork/course", version=VERSION)
    program = TransformerManager().transform_cell(source)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"No tag v{VERSION}.*Delete @v{VERSION}"):
        exec(program, {"get_ipython": FailingShell})
    assert f"git+https://github.com/fork/course@v{VERSION}" in capsys.readouterr().out


def test_setup_cell_installs_package_then_what_colab_lacks(monkeypatch) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    from colab_utils import install

    source = addresses.SETUP.format(address="fork/course", version=VERSION)
    program = TransformerManager().transform_cell(source)
    calls, specs = [], iter([None, object()])  # not installed, then installed

    class Shell:
        def run_line_magic(self, name: str, line: str) -> None:
            calls.append(f"{name} {line}")

    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: next(specs))
    monkeypatch.setattr(install, "colab", lambda: calls.append("install.colab"))
    exec(program, {"get_ipython": Shell})
    package = f"git+https://github.com/fork/course@v{VERSION}"
    assert calls == [f'pip install -q --no-deps "{package}"', "install.colab"]


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
