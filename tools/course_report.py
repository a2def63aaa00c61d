"""Collect the numbers that a run of the course measured from its recipes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from colab_utils.evaluation.claims import MIME
from colab_utils.recipe import read


def claims(executed: Path) -> list[dict[str, Any]]:
    """Return the claims in an executed notebook, with the notebook and its SEED."""
    cells = json.loads(executed.read_bytes())["cells"] if executed.exists() else []
    found = [
        output["data"][MIME]
        for cell in cells
        for output in cell.get("outputs", [])
        if MIME in output.get("data", {})
    ]
    seeds = re.findall(r"^SEED = (\d+)", "\n".join(_sources(cells)), re.MULTILINE)
    # papermill puts its parameters into a later cell.
    seed = int(seeds[-1]) if seeds else None
    return [{"notebook": executed.stem, "seed": seed, **claim} for claim in found]


def _sources(cells: list[dict[str, Any]]) -> list[str]:
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    return ["".join(source) for source in code]


def recipe(workspace: Path, kind: str, name: str) -> dict[str, Any]:
    """Read the recipe of this name, else the oldest one of this kind, else {}.

    A damaged one is told and left out: the notebooks have run, and the summary comes.
    """
    found = sorted(workspace.glob(f"{kind}/*/recipe.json"), key=os.path.getmtime)
    found = [path for path in found if path.parent.name == name] or found
    try:
        return read(found[0].parent) if found else {}
    except ValueError as error:
        print(error)
        return {}


def numbers(value: Any) -> dict[str, float]:
    """Return the numbers in an object, by name."""
    fields = value.items() if isinstance(value, dict) else ()
    return {name: one for name, one in fields if type(one) in (int, float)}


def summarize(workspace: Path, notebooks: dict[str, Any]) -> dict[str, Any]:
    """Collect what the notebooks of a run wrote into their recipes."""
    summary: dict[str, Any] = {}
    rows = numbers(recipe(workspace, "datasets", "my-dataset").get("rows"))
    names = {"rows_in": "in", "rows_kept": "kept", "rejected": "rejected"}
    if rows.keys() >= {*names.values()}:
        summary["dataset"] = {name: rows[key] for name, key in names.items()}
    adapter = recipe(workspace, "adapters", "my-adapter").get("results") or {}
    model = recipe(workspace, "models", "my-llama").get("results") or {}
    for measure in ("accuracy", "loss"):
        # The adapter may be newer than the model, whose recipe repeats its results.
        both = {**numbers(model.get(measure)), **numbers(adapter.get(measure))}
        if both:
            summary[measure] = both
    if agreement := numbers(model).get("agreement"):
        summary["agreement"] = agreement
    found = [claim for run in notebooks.values() for claim in run.pop("claims", [])]
    if found:
        summary["claims"] = found
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
    for claim in summary.get("claims", []):
        mark = "holds" if claim["holds"] else "DOES NOT HOLD"
        lines.append(f"claim      {claim['claim']} {claim['value']:.4g}: {mark}")
    lines.append(f"{'notebook':<28} {'seconds':>8} {'peak GiB':>9}")
    for name, run in summary["notebooks"].items():
        lines.append(f"{name:<28} {run['seconds']:8.1f} {run['peak_rss_gib']:9.2f}")
    return "\n".join(lines)
