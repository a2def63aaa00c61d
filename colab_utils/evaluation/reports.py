"""A report: the scores of models in the harness's format, figures and a README."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import hub, locks, recipe, replacement
from colab_utils.evaluation import harness

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(
    folder: Path,
    found: Mapping[str, dict[str, Any]],
    text: str,
    figures: Mapping[str, Figure],
    **fields: Any,
) -> None:
    """Write a report to `folder`; an older one stays whole until it is replaced.

    `found` has what `lm_eval.simple_evaluate` returned for each model, which goes to a
    folder with the model's name. `text` is the README's, under the title. The figures
    become PNG files, and `fields` go to recipe.json. Raises OSError if a file cannot be
    written.
    """
    with locks.writing(folder):
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        new = part / folder.name
        part.mkdir()  # without parents: a disk that disappeared is not made anew
        new.mkdir()
        try:
            for name, results in found.items():
                harness.save(results, new, name)
            for name, figure in figures.items():
                figure.savefig(new / f"{name}.png", dpi=150)
            pictures = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
            hub.write_card(new, {}, folder.name, f"{text}\n\n{pictures}")
            recipe.write(new, **fields)
            replacement.replace(new, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
