"""Measure the held-out loss of an adapter, whoever trained it.

    python bench/rivals/score.py ADAPTER DATASET

Loads the base model in 4 bits as the course does, reads the test rows of DATASET with
and without the adapter, and writes both losses (nats a token of the answers) into the
adapter's recipe.json, as 02_finetune_qlora does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from colab_utils import data, evaluation, models, recipe, runtime


def score(adapter: Path, dataset: Path) -> dict[str, float]:
    """Return the held-out losses: `base` and `tuned`."""
    rows = data.read(dataset, "test")
    model, tokenizer = models.load_adapter(adapter)
    with model.disable_adapter():
        base = evaluation.score(model, tokenizer, rows).loss
    return {"base": base, "tuned": evaluation.score(model, tokenizer, rows).loss}


def main() -> None:
    runtime.quiet()
    adapter, dataset = map(Path, sys.argv[1:3])
    made = recipe.read(adapter)
    made["results"] = {"loss": score(adapter, dataset)}
    (adapter / "recipe.json").write_text(json.dumps(made, indent=2))
    print("held-out loss", json.dumps(made["results"]["loss"]))


if __name__ == "__main__":
    main()
