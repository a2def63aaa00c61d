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
    page, parts = tmp_path / "page.md", ["merge", "dataset"]
    faults = ["moments", "accesses", "python", "vanish", "vanish-accesses", "race"]
    given = ["--share", "0.02", "--page", page, "--parts", *parts, "--faults", *faults]
    result = run("-m", "tools.attack", *map(str, given))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(page.read_text("utf-8"))
    for part, moments, accesses, races in (("merge", 2, 1, 2), ("dataset", 1, 1, 1)):
        assert rows[part, "SIGKILL at a random moment"][0] == moments
        assert rows[part, "SIGKILL at a random file access"][:2] == [accesses] * 2
        assert rows[part, "two processes at once"][0] == races
        renames = rows[part, "rename of Python fails once (EIO, ESTALE, ENOSPC)"]
        assert renames[:2] == [1, 1]
    assert all(row[2:] == [0, 0, 0] for row in rows.values())


def test_attack_counts_the_losses_of_a_part_that_writes_in_place(tmp_path):
    result = run("tests/helpers/attack_in_place.py", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("row:")]
    rows = {
        fault: map(int, counts) for _, fault, *counts in (x.split("|") for x in lines)
    }
    bad = {fault: sum(counts) for fault, counts in rows.items()}  # lost and mixed
    assert bad["SIGKILL at a random moment"] >= 3  # of five
    assert bad["SIGKILL at a random file access"] >= 1  # of two


def test_page_in_the_docs_has_no_losses():
    rows = rows_of(PAGE.read_text("utf-8"))
    parts = {part for part, _ in rows}
    assert {"SFT training", "DPO training", "merge", "GGUF export", "dataset"} <= parts
    for part in parts:
        assert rows[part, "SIGKILL at a random moment"][0] >= 10
    assert all(row[2:4] == [0, 0] for row in rows.values())
