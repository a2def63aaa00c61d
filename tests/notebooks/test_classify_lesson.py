"""Run notebook 11 on the demo world, and on labels as readers have them."""

from __future__ import annotations

import json

import pytest
from helpers.lessons import run_in_one_process, run_lesson, write_shorter

from colab_utils import data


@pytest.mark.slow
def test_11_numbers_on_the_demo_world(tmp_path):
    claims = run_lesson("11_classify", tmp_path)
    assert claims["probabilities, difference from by hand"] < 1e-3
    assert claims["head, accuracy"] > 0.9
    assert claims["points by the leak"] > 20
    assert claims["name over head, points"] > 5
    assert claims["name over number, points"] > 30
    assert claims["pipeline, same label"] > 0.95
    recipe = json.loads(
        (tmp_path / "workspace/adapters/my-classifier/recipe.json").read_text()
    )
    assert recipe["labels"][0] == "Africa" and len(recipe["labels"]) == 6
    assert recipe["results"]["accuracy"]["head"] == claims["head, accuracy"]


@pytest.mark.slow
def test_11_on_imbalanced_labels_with_odd_names(tmp_path):
    """One class has a single row, another stands in the test only, two look alike."""
    labels = ["spam", "Spam ", 'a "quoted", label', "日本\tx"]
    rows = [
        data.to_row({"text": f"text {n} about {n % 3}", "label": labels[n % 3]}, n)
        for n in range(1, 31)
    ]
    rows.append(data.to_row({"text": "alone", "label": labels[3]}, 31))
    test = [
        data.to_row({"text": f"more {n} of {n % 3}", "label": "spam"}, n)
        for n in range(1, 9)
    ]
    test.append(data.to_row({"text": "never seen", "label": "new"}, 9))
    folder = tmp_path / "workspace/datasets/odd"
    folder.mkdir(parents=True)
    fields = {"source": "odd.csv", "metric": "accuracy", "card": "Odd labels."}
    data.save(folder, {"train": rows, "test": test}, [], parameters={}, **fields)
    # The trainings with few labels read fewer texts.
    notebook = write_shorter("11_classify", tmp_path, {r"\b320 / FEW": "40 / FEW"})
    given = {"DATASET_NAME": "odd", "ADAPTER_NAME": "odd"}
    workspace = tmp_path / "workspace"
    ((error, printed),) = run_in_one_process([(notebook, given, workspace)])
    assert error == "", printed[-2000:]
    adapter = tmp_path / "workspace/adapters/odd"
    assert json.loads((adapter / "recipe.json").read_text())["labels"] == sorted(
        {row["label"] for row in rows}
    )
    card = (tmp_path / "workspace/models/odd/README.md").read_text("utf-8")
    assert 'pipeline("text-classification", "odd")' in card
