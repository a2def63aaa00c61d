"""Checkpoints of a run, to resume from after a disconnect."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from colab_utils import locks, recipe, workspace

HASHES = "sha256.json"  # of each file of a checkpoint
INPUTS = "inputs.json"  # identifies the run: its data and parameters
REQUIRED = {"trainer_state.json", "optimizer.pt", "scheduler.pt"}
# A run may resume although these differ, under the conditions of `_obstacle`.
RESUMABLE = ("epochs", "tokens", "accumulation")


def resume_point(checkpoints: Path, inputs: dict[str, Any]) -> str | None:
    """Return the newest complete checkpoint that a run resumes from, or None.

    `inputs` identifies the run (hash of the data, method, rank, ...) and is written to
    inputs.json. A run also resumes with more "epochs", or with other "tokens" and
    "accumulation" if their product, the size of an update, is the same. The
    "model" is compared by its "weights" (a `models.fingerprint`) where both have one,
    not by its name.

    No checkpoint is deleted: the folder of any other run is renamed, and renamed back
    when that run is started again. Incomplete checkpoints are skipped. Printed lines
    report this, and each input that differs. Raises RuntimeError while another process
    trains there.
    """
    with locks.locked(checkpoints):
        point, obstacle = _inspect(checkpoints, inputs)
        if obstacle:
            workspace.set_aside(checkpoints, obstacle)
        if point is None:
            point = _bring_back(checkpoints, inputs)
        note = checkpoints / INPUTS
        earlier = _read(note)
        checkpoints.mkdir(exist_ok=True)
        recipe.write_json(note, inputs, sort_keys=True)
    if point is None:
        return None
    print(f"resuming at step {_step(point)}, from {point}")
    _explain(_differences(earlier, inputs))
    return str(point)


def write_hashes(checkpoint: Path) -> None:
    """Write the SHA-256 of each file of a checkpoint, for `is_complete`."""
    files = [file for file in checkpoint.iterdir() if file.is_file()]
    hashes = {file.name: recipe.sha256(file) for file in files}
    (checkpoint / HASHES).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has all files for resuming, each as it was written.

    Without the hashes of `write_hashes`, only a truncated file is found.
    """
    files = [file for file in folder.iterdir() if file.is_file()]
    if hashes := _read(folder / HASHES):
        found = {file.name: recipe.sha256(file) for file in files}
        return hashes.items() <= found.items()
    return (
        {file.name for file in files} >= REQUIRED
        and any(file.suffix == ".safetensors" for file in files)
        and all(map(_is_whole, files))
    )


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove the checkpoints of a run whose result is saved.

    inputs.json goes last: without it, the rest of a removal that was cut short would be
    set aside, as the checkpoints of an unknown run.
    """
    for folder in numbered(checkpoints):
        workspace.discard(folder, ignore_errors=True)
    workspace.discard(checkpoints, ignore_errors=True)


def _inspect(
    checkpoints: Path, inputs: dict[str, Any]
) -> tuple[Path | None, str | None]:
    """Return the checkpoint to resume from, if any, and what forbids to resume."""
    found = numbered(checkpoints)[::-1]
    if not found:
        return None, None
    point = _newest_complete(found)
    obstacle = _obstacle(_read(checkpoints / INPUTS), inputs, point)
    return (None if obstacle else point), obstacle


def _bring_back(checkpoints: Path, inputs: dict[str, Any]) -> Path | None:
    """Rename the folder of this run, which was set aside, back; return its checkpoint.

    It stays where it is if `checkpoints` holds anything but the inputs of a run.
    """
    aside = sorted(checkpoints.parent.glob(f"{checkpoints.name}.*"), reverse=True)
    points = (point for folder in aside if (point := _inspect(folder, inputs)[0]))
    point = next(points, None)
    present = {path.name for path in checkpoints.glob("*")}
    if point is None or present - {INPUTS}:
        return None
    if checkpoints.exists():
        workspace.discard(checkpoints)
    folder = point.parent
    print(f"{folder.name} has checkpoints of this run: it is {checkpoints.name} again")
    folder.rename(checkpoints)
    return checkpoints / point.name


def _newest_complete(found: list[Path]) -> Path | None:
    for folder in found:
        if is_complete(folder):
            return folder
        print(f"skipping {folder.name}: it is incomplete or damaged")
    return None


def _obstacle(
    earlier: dict[str, Any], inputs: dict[str, Any], point: Path | None
) -> str | None:
    """Return why a run with these inputs can't resume from `point`, or None."""
    if not earlier.keys() & inputs.keys():
        return (
            f"The checkpoints are of an unknown run: {INPUTS} is missing or unreadable"
        )
    changed = _differences(earlier, inputs)
    fatal = [name for name in changed if name not in RESUMABLE]
    if not _same_update(earlier, inputs):
        fatal += [name for name in ("tokens", "accumulation") if name in changed]
    if fatal:
        what = ", ".join(f"{name} {_show(*changed[name])}" for name in sorted(fatal))
        return f"The checkpoints are of a run with other inputs: {what}"
    done = _epochs(point) if point and "epochs" in changed else 0.0
    if done and done >= inputs["epochs"]:
        return (
            f"The checkpoints have trained {done:.2f} epochs already, and epochs = "
            f"{inputs['epochs']:g} now"
        )
    return None


def _differences(
    earlier: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the earlier and the present value of each input that differs.

    Numbers are compared as numbers: 1 is 1.0. An input that the earlier version of the
    course did not record is not compared.
    """
    both = {name for name in inputs if name in earlier}
    if "weights" in both:
        both.discard("model")
    values = {name: (earlier[name], inputs[name]) for name in sorted(both)}
    return {name: (old, new) for name, (old, new) in values.items() if old != new}


def _same_update(earlier: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Return whether an update has as many tokens, to 1 %: plans round them up."""
    sizes = [
        one.get("tokens", 0) * one.get("accumulation", 0) for one in (earlier, inputs)
    ]
    return abs(sizes[0] - sizes[1]) <= 0.01 * max(sizes)


def _show(old: Any, new: Any) -> str:
    """Return both values in words; of a SHA-256 hash the first 8 digits."""
    old, new = (
        f"{value[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", str(value)) else value
        for value in (old, new)
    )
    return f"was {old} and is {new}"


def _explain(changed: dict[str, tuple[Any, Any]]) -> None:
    """Print what it means to resume although some inputs differ."""
    if "epochs" in changed:
        print(
            f"epochs {_show(*changed['epochs'])}: the learning rate of the remaining "
            "steps falls to zero at the new end"
        )
    if "tokens" in changed:
        print(
            f"tokens of a forward pass: {_show(*changed['tokens'])}. Rows are packed "
            "anew, so the rest of this epoch may repeat some rows and miss others"
        )


def _epochs(checkpoint: Path) -> float:
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return float(state.get("epoch") or 0)


def _read(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if it can't be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def numbered(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first, whole or not."""
    folders = checkpoints.glob("checkpoint-*")
    found = [one for one in folders if re.fullmatch(r"checkpoint-\d+", one.name)]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _is_whole(file: Path) -> bool:
    """Return whether a file of a checkpoint was written to its end."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin"):  # torch.save writes a zip file
            return zipfile.is_zipfile(file)
    except (ValueError, SafetensorError):
        return False
    return True
