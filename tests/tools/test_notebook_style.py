"""The notebooks' canonical form, shape and addresses: each rule on a violation."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
notebooks = importlib.import_module("notebooks")
addresses = importlib.import_module("notebook_addresses")

NAME = "01_good.ipynb"
README = "# Course\n\n<!-- notebooks -->\n<!-- /notebooks -->\n\nThe end.\n"
PYPROJECT = '[project.urls]\nRepository = "https://github.com/first/course"\n'


def code(source: str, *tags: str) -> dict:
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def good() -> dict:
    """A notebook without a fault: 21 cells."""
    cells = [
        new_markdown_cell("# Count to six\n\nYou count things. Then you stop."),
        code("", "setup"),
        new_markdown_cell("All imports."),
        code("import math", "imports"),
        new_markdown_cell("What you may change."),
        code('COUNT = 6  # @param {type:"integer"}', "parameters"),
    ]
    for number in range(6):
        cells.append(new_markdown_cell(f"## Step {number}\n\nWhy this step."))
        cells.append(code(f"print(math.sqrt(COUNT) + {number})"))
    exercises = "## Exercises\n\n1. Set `COUNT` to 2.\n2. To 3.\n3. To 4."
    ends = ("## Summary\n\nIt counted.", exercises, "## Next\n\nNothing.")
    cells += map(new_markdown_cell, ends)
    cells[1].source = addresses.SETUP.format(address="first/course")
    return new_notebook(cells=cells)


def save(root: Path, nb: dict, name: str = NAME) -> None:
    nbformat.write(nb, root / "notebooks" / name)


def tool(root: Path, task: str) -> int:
    return notebooks.main([task, "--root", str(root)])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one good notebook, formatted, badges written."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    save(tmp_path, good())
    assert tool(tmp_path, "badges") == 0
    return tmp_path


def test_the_projects_own_notebooks_are_in_order() -> None:
    assert notebooks.check(ROOT) == []


def test_a_good_notebook_has_no_problem(project: Path) -> None:
    assert notebooks.check(project) == []


def test_no_notebooks_is_a_problem(tmp_path: Path) -> None:
    assert "no notebooks found" in notebooks.check(tmp_path)[0]


# ------------------------------------------------------------------------------- shape


def change(number: int, source: str) -> Callable[[dict], None]:
    def apply(nb: dict) -> None:
        nb.cells[number - 1].source = source

    return apply


def add(number: int, *cells: dict) -> Callable[[dict], None]:
    def apply(nb: dict) -> None:
        nb.cells[number - 1 : number - 1] = [copy.deepcopy(cell) for cell in cells]

    return apply


def tag(number: int, *tags: str) -> Callable[[dict], None]:
    def apply(nb: dict) -> None:
        nb.cells[number - 1].metadata["tags"] = list(tags)

    return apply


def swap(one: int, other: int) -> Callable[[dict], None]:
    def apply(nb: dict) -> None:
        cells = nb.cells
        cells[one - 1], cells[other - 1] = cells[other - 1], cells[one - 1]

    return apply


def long(lines: int) -> str:
    return "\n".join(f"print({n})" for n in range(lines))


def all_long(nb: dict) -> None:
    for cell in nb.cells[7:18:2]:
        cell.source = long(7)


def some_long(nb: dict) -> None:
    for cell in nb.cells[7:10:2]:
        cell.source = long(21)


def without_prose(nb: dict) -> None:
    for number in range(16, 9, -2):
        nb.cells[number].cell_type = "raw"


PARAMETER = 'COUNT = 6  # @param {type:"integer"}'
MANY = "\n".join([PARAMETER, *(f"P{n} = {n}  # @param" for n in range(10))])
VIOLATIONS = {
    "second H1": (change(7, "# Again"), ":1: 2 H1 titles"),
    "H1 not first": (change(1, "Hello\n\n# Title"), ":1: "),
    "no sentence": (change(1, "# Count to six\n"), ":1: no sentence below the title"),
    "no summary": (change(19, "## The end"), "does not end as"),
    "two exercises": (change(20, "## Exercises\n\n1. a\n2. b"), ":20: 2 numbered"),
    "four": (change(20, "## Exercises\n\n1. a\n2. b\n3. c\n4. d"), ":20: 4 numbered"),
    "order of the end": (swap(19, 21), "does not end as"),
    "no parameters": (tag(6), "0 cells are tagged `parameters`"),
    "two parameters": (tag(8, "parameters"), "2 cells are tagged `parameters`"),
    "no imports": (tag(4), "0 cells are tagged `imports`"),
    "order of the start": (swap(4, 6), "first three code cells are not"),
    "code before": (add(3, code("print(1)")), "first three code cells are not"),
    "few cells": (lambda nb: nb.cells.__delitem__(slice(6, 8)), "19 cells, not 20"),
    "many cells": (
        add(7, *[new_markdown_cell("more") for _ in range(40)]),
        "61 cells, not 20",
    ),
    "31 lines": (change(8, long(31)), ":8: 31 lines, over 30"),
    "wide": (change(8, f'"{"x" * 90}"'), ":8: a line of 92 columns"),
    "median": (all_long, "7 lines in the median, over 6"),
    "p90": (some_long, "have 21 lines or more, over 20"),
    "prose": (without_prose, "4 of 9 code cells have no text before them"),
    "late import": (change(8, "import os\n\nos.getpid()"), ":8: `import os` is not in"),
    "inner import": (
        change(8, "def f():\n    from os import sep\n\n    return sep"),
        ":8: `from os import sep` is not in",
    ),
    "if False": (change(8, "if False:\n    print(1)"), ":8: `if False:` decides"),
    "if 0": (change(8, "if 0:\n    print(1)"), ":8: `if 0:` decides"),
    "undefined": (change(8, "print(nobody)"), ":8: Undefined name `nobody`"),
    "unused import": (change(4, "import json\nimport math"), ":4: `json` imported"),
    "does not parse": (change(8, "print("), ":8: "),
    "eleven": (change(6, MANY), ":6: 11 parameters, over 10"),
    "no form": (change(6, "COUNT = 6"), ":6: COUNT has no form field"),
    "no literal": (
        change(6, "COUNT = len('six')  # @param"),
        "is not `NAME = literal`",
    ),
    "unread": (change(6, PARAMETER + "\nX = 1  # @param"), ":6: no later cell reads X"),
    "read before": (change(4, "import math\n\nprint(COUNT)"), "Undefined name `COUNT`"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_is_found(project: Path, violation: str) -> None:
    mutate, expected = VIOLATIONS[violation]
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    mutate(nb)
    save(project, nb)
    problems = notebooks.check(project)
    assert any(expected in problem for problem in problems), problems
    assert all("; fix: " in problem for problem in problems), problems


def test_magics_and_fences_are_understood(project: Path) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    nb.cells[7].source = "%matplotlib inline\nfiles = !ls\nprint(files)"
    nb.cells[9].source = "%%time\nprint(COUNT)"
    nb.cells[10].source = "Run this:\n\n```bash\n# not a title\n```"
    save(project, nb)
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


def test_a_parameter_read_in_an_f_string_counts(project: Path) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    for cell in nb.cells[7:18:2]:
        cell.source = 'print(f"{COUNT:d}", math.pi)'
    save(project, nb)
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


# --------------------------------------------------------------------------- canonical


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (lambda nb: nb.cells[7].update(execution_count=3), ":8: not canonical"),
        (lambda nb: nb.cells[7].metadata.update(outputId="x"), ":8: not canonical"),
        (lambda nb: nb.cells[7].update(source="print( 1 )"), ":8: not canonical"),
        (lambda nb: nb.metadata.update(widgets={}), "not asking for a T4"),
        (lambda nb: nb.metadata.pop("accelerator"), "not asking for a T4"),
        (lambda nb: nb.metadata.colab.update(gpuType="A100"), "not asking for a T4"),
        (lambda nb: nb.cells.append(code("")), "has empty cells"),
    ],
)
def test_what_is_not_canonical_is_found_and_formatted(
    project: Path, mutate: Callable, expected: str
) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    mutate(nb)
    save(project, nb)
    (problem,) = notebooks.check(project)
    assert expected in problem
    assert problem.endswith("fix: make format")
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


def test_layout_is_part_of_the_canonical_form(project: Path) -> None:
    path = project / "notebooks" / NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert "JSON not laid out" in notebooks.check(project)[0]


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}", "[]", '{"nbformat": 3}', "\xff"])
def test_a_broken_file_is_named(project: Path, text: str) -> None:
    (project / "notebooks" / NAME).write_bytes(text.encode("latin-1"))
    (problem,) = notebooks.check(project)
    assert problem.startswith(f"notebooks/{NAME}: not a notebook")
    assert tool(project, "format") == 1


def test_code_that_does_not_parse_is_not_rewritten(project: Path, capsys) -> None:
    path = project / "notebooks" / NAME
    nb = nbformat.read(path, as_version=4)
    nb.cells[7].source = "print("
    save(project, nb)
    before = path.read_bytes()
    assert tool(project, "format") == 1
    assert "fix: correct the cell" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_notebook_saved_by_colab_keeps_its_ids(project: Path) -> None:
    path = project / "notebooks" / NAME
    before = path.read_bytes()
    nb = json.loads(before)
    nb["nbformat_minor"] = 0
    nb["metadata"]["colab"] |= {"name": NAME, "include_colab_link": True}
    for number, cell in enumerate(nb["cells"]):
        cell["metadata"] |= {"id": cell.pop("id"), "colab": {"base_uri": "x"}}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "a"}]
    link = {"id": "view-in-github", "colab_type": "text"}
    badge = {"cell_type": "markdown", "metadata": link, "source": ["<a>badge</a>"]}
    nb["cells"].insert(0, badge)
    path.write_text(json.dumps(nb))
    assert tool(project, "format") == 0
    assert path.read_bytes() == before


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=5,
)
METADATA = st.dictionaries(
    st.sampled_from(["id", "outputId", "papermill", "execution", "widgets", "colab"]),
    JSON,
)
IDS = st.sampled_from(["a", "b", "c-1", "", "no spaces", None, 7]) | TEXT
SOURCE = st.sampled_from(["x = { 1 : 2 }", "%%time\nf( 1 )", "!ls", "'ü'\n\n", "a;b"])
CODE = st.fixed_dictionaries(
    {
        "cell_type": st.just("code"),
        "id": IDS,
        "execution_count": st.integers(0, 9),
        "metadata": METADATA,
        "outputs": st.lists(JSON, max_size=2),
        "source": SOURCE | SOURCE.map(lambda text: text.splitlines(True)),
    }
)
PROSE = st.fixed_dictionaries(
    {
        "cell_type": st.sampled_from(["markdown", "raw"]),
        "metadata": METADATA,
        "source": TEXT,
    },
    optional={"id": IDS},
)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(CODE | PROSE, max_size=6), metadata=METADATA)
def test_whatever_a_run_leaves_is_stripped(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict], metadata: dict
) -> None:
    root = tmp_path_factory.mktemp("junk")
    (root / "notebooks").mkdir()
    path = root / "notebooks" / NAME
    nb = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb), encoding="utf-8")
    assert tool(root, "format") == 0
    text = path.read_text(encoding="utf-8")
    result = nbformat.reads(text, as_version=4)
    nbformat.validate(result)
    assert text == nbformat.writes(result) + "\n"
    assert result.metadata == notebooks.NOTEBOOK_METADATA
    for cell in result.cells:
        assert set(cell.metadata) <= {"tags", "cellView"}
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    ids = [cell.id for cell in result.cells]
    assert len(set(ids)) == len(ids)
    kept = [cell for cell in cells if "".join(cell["source"]).strip()]
    own = {i for i in ("a", "b", "c-1") if any(c.get("id") == i for c in kept)}
    if not any(c["metadata"].get("id") == "view-in-github" for c in cells):
        assert own <= set(ids)
    assert tool(root, "format") == 0
    assert path.read_text(encoding="utf-8") == text


# --------------------------------------------------------------------------- addresses


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


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
def test_badges_follow_the_remote(
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
    assert f'"git+https://github.com/{address}"' in "".join(cells[1]["source"])
    readme = (project / "README.md").read_text()
    assert f"| [Count to six](notebooks/{NAME}) | You count things. | [![Open" in readme
    assert link in readme
    assert readme.endswith("\n\nThe end.\n")


def test_the_remote_of_a_surrounding_repository_is_not_ours(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "remote", "add", "origin", "https://github.com/some/body")
    inner = tmp_path / "course"
    inner.mkdir()
    (inner / "pyproject.toml").write_text(PYPROJECT)
    assert addresses.repository_address(inner) == ("first/course", "pyproject.toml")


def test_without_any_address_the_fix_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(addresses.NotebookError, match="Repository = "):
        addresses.repository_address(tmp_path)


def test_a_fork_moves_its_own_links_and_no_others(project: Path) -> None:
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


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (NAME, "/first/course/blob", "/other/course/blob", "is not the one of"),
        (NAME, f"main/notebooks/{NAME}", "main/notebooks/02_x.ipynb", ":1: badge"),
        (NAME, "/blob/main/", "/blob/dev/", ":1: badge"),
        (NAME, "installs what", "installs all", ":2: set-up cell"),
        (NAME, "git+https://github.com/first", "git+https://github.com/x", ":2: set-"),
        ("README.md", "You count things.", "You juggle.", "README.md: table"),
        ("README.md", "<!-- notebooks -->", "", "README.md: no table"),
    ],
)
def test_addresses_that_disagree_are_found(
    project: Path, file: str, old: str, new: str, expected: str
) -> None:
    path = project / ("README.md" if file == "README.md" else f"notebooks/{file}")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    problems = notebooks.check(project)
    assert any(expected in problem for problem in problems), problems
    assert all("make badges" in problem for problem in problems), problems


def test_a_notebook_without_badge_and_set_up_gets_both(project: Path) -> None:
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


def test_a_link_that_leads_nowhere_is_found(project: Path) -> None:
    link = "https://colab.research.google.com/github/first/course/blob/main/no.ipynb"
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    nb.cells[20].source = f"## Next\n\n[Go on]({link})."
    save(project, nb)
    (problem,) = notebooks.check(project)
    assert f"{NAME}:21: link to main/no.ipynb" in problem


def test_a_missing_readme_is_a_problem(project: Path) -> None:
    (project / "README.md").unlink()
    assert notebooks.check(project) == [
        "README.md: missing; fix: write it, then make badges"
    ]


def test_the_set_up_cell_does_nothing_elsewhere(monkeypatch) -> None:
    from IPython.core.inputtransformer2 import TransformerManager

    source = addresses.SETUP.format(address="first/course")
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


def test_the_command_line_names_problems_and_fails(project: Path, capsys) -> None:
    assert tool(project, "check") == 0
    (project / "notebooks" / NAME).unlink()
    assert tool(project, "check") == 1
    assert "no notebooks found" in capsys.readouterr().out
