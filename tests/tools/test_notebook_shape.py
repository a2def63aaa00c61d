"""tools.notebook_shape and the command line: each rule on a violation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from helpers.notebook_project import NAME, code, save, tool
from nbformat.v4 import new_markdown_cell

from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_check_finds_nothing_in_the_course() -> None:
    assert notebooks.check(ROOT) == []


def test_check_finds_nothing_in_a_good_notebook(project: Path) -> None:
    assert notebooks.check(project) == []


def test_check_without_notebooks(tmp_path: Path) -> None:
    assert "no notebooks found" in notebooks.check(tmp_path)[0]


def test_main_prints_problems_and_fails(project: Path, capsys) -> None:
    assert tool(project, "check") == 0
    (project / "notebooks" / NAME).unlink()
    assert tool(project, "check") == 1
    assert "no notebooks found" in capsys.readouterr().out


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
MANY = "\n".join([PARAMETER, *(f"P{n} = {n}  # @param" for n in range(11))])
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
    "if False": (
        change(8, "if False:\n    print(1)"),
        ":8: `if False:` has a constant",
    ),
    "if 0": (change(8, "if 0:\n    print(1)"), ":8: `if 0:` has a constant"),
    "undefined": (change(8, "print(nobody)"), ":8: Undefined name `nobody`"),
    "unused import": (change(4, "import json\nimport math"), ":4: `json` imported"),
    "does not parse": (change(8, "print("), ":8: "),
    "twelve": (change(6, MANY), ":6: 12 parameters, over 11"),
    "raw": (
        change(6, 'COUNT = 6  # @param {type:"raw"}'),
        ":6: COUNT is a raw field",
    ),
    "no form": (change(6, "COUNT = 6"), ":6: COUNT has no form field"),
    "no literal": (
        change(6, "COUNT = len('six')  # @param"),
        "is not `NAME = literal`",
    ),
    "unread": (change(6, PARAMETER + "\nX = 1  # @param"), ":6: no later cell reads X"),
    "read before": (change(4, "import math\n\nprint(COUNT)"), "Undefined name `COUNT`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("violation", VIOLATIONS)
def test_check_finds_violation_of_shape(project: Path, violation: str) -> None:
    mutate, expected = VIOLATIONS[violation]
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    mutate(nb)
    save(project, nb)
    problems = notebooks.check(project)
    assert any(expected in problem for problem in problems), problems
    assert all("; fix: " in problem for problem in problems), problems


def test_check_understands_magics_and_code_fences(project: Path) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    nb.cells[7].source = "%matplotlib inline\nfiles = !ls\nprint(files)"
    nb.cells[9].source = "%%time\nprint(COUNT)"
    nb.cells[10].source = "Run this:\n\n```bash\n# not a title\n```"
    save(project, nb)
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


def test_parameter_read_in_an_f_string_is_read(project: Path) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    for cell in nb.cells[7:18:2]:
        cell.source = 'print(f"{COUNT:d}", math.pi)'
    save(project, nb)
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


def test_choices_of_a_field_may_take_a_long_line(project: Path) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    choices = ", ".join(f'"choice {n}"' for n in range(9))
    nb.cells[5].source = f'COUNT = "choice 0"  # @param [{choices}]'
    save(project, nb)
    assert notebooks.check(project) == []
