"""The attack on what the course writes: its table, and that it finds planted losses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
ROW = re.compile(
    r"^\| ([\w ]+) \| ([^|]+) \|" + r" ([\d,]+) \|" * 5 + "$", re.MULTILINE
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs os.waitid"),
]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows_of(text: str) -> dict[tuple[str, str], list[int]]:
    """Return tries, struck, lost, mixed and leftovers of each part and fault."""
    return {
        (part, fault): [int(number.replace(",", "")) for number in numbers]
        for part, fault, *numbers in ROW.findall(text)
    }


def test_attack_writes_a_table_without_losses(tmp_path):
    page = tmp_path / "page.md"
    faults = ["moments", "accesses", "python", "vanish", "race", "reader"]
    parts = ["merge", "dataset", "report"]
    given = ["--share", "0.03", "--page", page, "--parts", *parts, "--faults", *faults]
    result = run("-m", "tools.attack", *map(str, given))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(page.read_text("utf-8"))
    assert {part for part, _ in rows} == {*parts}
    for part in parts:
        assert rows[part, "SIGKILL at a random moment"][0] == 3
        assert rows[part, "SIGKILL at a random file access"][:2] == [2, 2]
        assert rows[part, "two processes at once"][0] == 3
    renames = [row for (_, fault), row in rows.items() if fault.startswith("rename")]
    assert [tries == struck for tries, struck, *_ in renames] == [True] * 3
    assert all(row[2:] == [0, 0, 0] for row in rows.values())


def test_attack_counts_the_losses_of_a_part_that_writes_in_place(tmp_path):
    result = run("tests/helpers/attack_in_place.py", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [
        line.split("|")[1:] for line in result.stdout.splitlines() if "row:" in line
    ]
    bad = {fault.split()[0]: list(map(int, counts)) for fault, *counts in lines}
    assert bad["SIGKILL"][0] + bad["SIGKILL"][1] >= 5  # of ten
    assert bad["open"][0] + bad["open"][1] >= 1
    assert bad["two"][1] >= 3  # of ten, as the second begins within the first


def test_page_in_the_docs_has_no_losses():
    rows = rows_of(PAGE.read_text("utf-8"))
    parts = {part for part, _ in rows}
    assert {"SFT training", "DPO training", "merge", "GGUF export", "dataset"} <= parts
    for part in parts:
        tries = rows[part, "SIGKILL at a random moment"][0]
        assert tries >= 50
    assert all(row[2:4] == [0, 0] for row in rows.values())
