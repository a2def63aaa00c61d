"""Collect the numbers that a run of the course measured from its recipes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def recipe(workspace: Path, kind: str, name: str) -> dict[str, Any]:
    """Read the recipe of this name, else the oldest one of this kind, else {}."""
    found = sorted(workspace.glob(f"{kind}/*/recipe.json"), key=os.path.getmtime)
    found = [path for path in found if path.parent.name == name] or found
    return json.loads(found[0].read_text(encoding="utf-8")) if found else {}


def summarize(workspace: Path, notebooks: dict[str, Any]) -> dict[str, Any]:
    """Collect what the notebooks of a run wrote into their recipes."""
    summary: dict[str, Any] = {}
    rows = recipe(workspace, "datasets", "my-dataset").get("rows")
    if rows:
        names = {"rows_in": "in", "rows_kept": "kept", "rejected": "rejected"}
        summary["dataset"] = {name: rows[key] for name, key in names.items()}
    adapter = recipe(workspace, "adapters", "my-adapter").get("results", {})
    model = recipe(workspace, "models", "my-llama").get("results", {})
    for measure in ("accuracy", "loss"):
        both = {**adapter.get(measure, {}), **model.get(measure, {})}
        if both:
            summary[measure] = both
    if "agreement" in model:
        summary["agreement"] = model["agreement"]
    return {**summary, "notebooks": notebooks}


def table(summary: dict[str, Any]) -> str:
    """Return the summary as text for a terminal."""
    lines = [""]
    if rows := summary.get("dataset"):
        kept = "kept {rows_kept} of {rows_in} rows, {rejected} rejected".format(**rows)
        lines.append(f"dataset    {kept}")
    for name, value in summary.get("accuracy", {}).items():
        lines.append(f"accuracy   {name:9s} {value:7.1%}")
    for name, value in summary.get("loss", {}).items():
        lines.append(f"loss       {name:9s} {value:7.3f}")
    if "agreement" in summary:
        lines.append(f"agreement  merged and adapter {summary['agreement']:.1%}")
    lines.append(f"{'notebook':<28} {'seconds':>8} {'peak GiB':>9}")
    for name, run in summary["notebooks"].items():
        lines.append(f"{name:<28} {run['seconds']:8.1f} {run['peak_rss_gib']:9.2f}")
    return "\n".join(lines)
