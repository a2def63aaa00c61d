"""Compute the rows of docs/t4-leaderboard.md from what runs on a T4 brought back.

bench/results/t4.json holds the target and the rows. The page's
table is written from it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

DATA = Path("bench", "results", "t4.json")
PAGE = Path("docs", "t4-leaderboard.md")
BEGIN, END = "<!-- rows -->\n", "<!-- /rows -->"
# The task. Everything else has its default; docs/t4-leaderboard.md explains it.
TASK: dict[str, Any] = {
    "model": "NousResearch/Llama-2-7b-hf",  # open: it needs no token
    "dataset": "openai/gsm8k:main",
    "parameters": {
        "MAX_ROWS": 2000,
        "MAX_TOKENS": 512,
        "TEST_SHARE": 0.1,
        "EPOCHS": 1,
        "SEED": 0,
    },
}
PACKAGES = ("torch", "triton", "transformers", "peft", "trl", "bitsandbytes", "unsloth")
NAMES = {"my-adapter": "this course", "unsloth": "Unsloth", "trl": "TRL and PEFT"}
# Who sets the target: its held-out loss after one epoch, rounded up to 0.01.
REFERENCE = "trl"


def read(root: Path) -> dict[str, Any]:
    """Return the leaderboard: the target (None before it is measured) and the rows."""
    return json.loads((root / DATA).read_text(encoding="utf-8"))


def difference(adapter: dict, dataset: dict, machine: dict) -> str | None:
    """Return how a run differs from the task, or None if it does not."""
    given = {**TASK["parameters"]}
    is_there = {
        "GPU": ("T4" if "T4" in machine["gpu"] else machine["gpu"], "T4"),
        "MODEL": (adapter["model"], TASK["model"]),
        "DATASET": (dataset["source"], TASK["dataset"]),
        "METHOD": (adapter["method"], "qlora"),
        "EPOCHS": (adapter["epochs"], given["EPOCHS"]),
        "SEED": (adapter["seed"], given["SEED"]),
        "SEED of 01": (dataset["parameters"]["seed"], given["SEED"]),
        "MAX_TOKENS": (dataset["parameters"]["max_tokens"], given["MAX_TOKENS"]),
        "TEST_SHARE": (dataset["parameters"]["test_share"], given["TEST_SHARE"]),
        "rows": (dataset["rows"]["kept"], given["MAX_ROWS"]),
        "trained rows": (adapter["data"], dataset["sha256"]["train.jsonl"]),
    }
    for name, (value, wanted) in is_there.items():
        if value != wanted:
            return f"{name} is {value}, and {wanted} in the task"
    return None


def make_row(adapter: dict, machine: dict, name: str) -> dict[str, Any]:
    """Return a row: one number, and what explains it. Times are in minutes."""
    cost, loss = adapter["training"], adapter["results"]["loss"]
    versions = {**adapter["versions"], **adapter.get("more_versions", {})}
    planned = cost.get("planned_seconds")
    return {
        "date": adapter["made"][:10],
        "trainer": name,
        "minutes": round(cost["seconds"] / 60, 1),
        "loss": round(loss["tuned"], 4),
        "loss_before": round(loss["base"], 4),
        "tokens_per_second": round(cost["tokens"] / cost["seconds"]),
        "peak_gib": round(cost["peak_gib"], 2),
        "planned_minutes": None if planned is None else round(planned / 60, 1),
        "planned_gib": None if planned is None else round(cost["planned_gib"], 2),
        "commit": machine["commit"],
        "data": adapter["data"],
        "colab": machine["colab"],
        "gpu": machine["gpu"],
        "versions": {name: versions[name] for name in PACKAGES if name in versions},
    }


def rows_of(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows that a run's results give, and a sentence for each other one."""
    rows, left_out = [], []
    workspace = folder / "workspace"
    machine = _json(folder / "machine.json")
    dataset = _json(workspace / "datasets" / "my-dataset" / "recipe.json")
    for name, title in NAMES.items():
        adapter = _json(workspace / "adapters" / name / "recipe.json")
        if not (adapter and dataset and machine):
            continue
        problem = difference(adapter, dataset, machine)
        if problem is None and "loss" not in adapter.get("results", {}):
            problem = "its held-out loss is missing"
        if problem:
            left_out.append(f"no row for {title}: {problem}")
        else:
            rows.append(make_row(adapter, machine, name))
    return rows, left_out


def add_rows(folder: Path, root: Path) -> list[str]:
    """Add the rows of a run to the leaderboard; returns what to print.

    The first row of TRL sets the target, which never changes then.
    """
    rows, lines = rows_of(folder)
    board = read(root)
    for row in rows:
        first = (board["rows"] or rows)[0]["data"]
        if row["data"] != first:
            lines.append(
                f"no row for {NAMES[row['trainer']]}: its rows have the hash "
                f"{row['data'][:12]}, those of the leaderboard {first[:12]}"
            )
            continue
        board["rows"].append(row)
        lines.append(f"row for {NAMES[row['trainer']]}: {row['minutes']} minutes")
        if board["target"] is None and row["trainer"] == REFERENCE:
            board["target"] = math.ceil(round(row["loss"] * 100, 6)) / 100
    if rows:
        (root / DATA).write_text(json.dumps(board, indent=1) + "\n", encoding="utf-8")
        page = root / PAGE
        page.write_text(with_table(page.read_text(encoding="utf-8"), board), "utf-8")
        lines.append(f"written to {PAGE} and {DATA}: commit both")
    return lines


def with_table(text: str, board: dict[str, Any]) -> str:
    """Return the page's text with the table of the leaderboard."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table(board) + END + rest.partition(END)[2]


def table(board: dict[str, Any]) -> str:
    """Return the target and the rows as Markdown, the fastest first."""
    target = board["target"]
    if not board["rows"]:
        return "**No row has been measured yet.** The target is not set either.\n"
    known = f"{target:.2f} nats a token" if target is not None else "not measured yet"
    columns = (
        "Date",
        "Trainer",
        "T4 minutes (planned)",
        "Held-out loss",
        "Tokens/s",
        "Peak GiB (planned)",
        "Commit",
        "Versions",
    )
    lines = [f"Target: {known}.", "", "| " + " | ".join(columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    for row in sorted(board["rows"], key=lambda row: _order(row, target)):
        cells = (
            row["date"],
            NAMES[row["trainer"]],
            _minutes(row, target),
            f"{row['loss_before']:.3f} → {row['loss']:.3f}",
            f"{row['tokens_per_second']:,}",
            f"{row['peak_gib']:.2f}{_planned(row['planned_gib'], '.2f')}",
            f"`{row['commit'][:12]}`",
            ", ".join(f"{name} {version}" for name, version in row["versions"].items()),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def reached(row: dict[str, Any], target: float | None) -> bool:
    """Return whether a run ended at the target or below; True before it is known."""
    return target is None or row["loss"] <= target


def _order(row: dict[str, Any], target: float | None) -> tuple[bool, float]:
    return not reached(row, target), row["minutes"]


def _minutes(row: dict[str, Any], target: float | None) -> str:
    shown = f"{row['minutes']:.1f}{_planned(row['planned_minutes'], '.1f')}"
    return shown if reached(row, target) else f"target not reached in {shown}"


def _planned(value: float | None, form: str) -> str:
    return "" if value is None else f" ({value:{form}})"


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
