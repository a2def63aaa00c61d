"""Colab's own model, which the stand-in of google.colab answers."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.processes import run

DOUBLES = Path(__file__).resolve().parents[1] / "helpers" / "google_colab"
ASK = """
from colab_utils import creation
print(creation.has_colab_ai())
ask = creation.colab_generator({model!r})
print(ask([[{{"role": "user", "content": "a"}}], [{{"role": "user", "content": "b"}}]]))
"""


def ask(model: str = "", *path: Path, **env: str):
    return run(ASK.format(model=model), *path, **env)


def test_colab_generator_asks_the_model():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": json.dumps(["one", "two"])}
    assert ask("", DOUBLES, **env).stdout.splitlines() == ["True", "['one', 'two']"]
    env["COLAB_DOUBLE_AI"] = json.dumps(["{prompt} by {model_name}"])
    found = ask("google/gemini-2.5-pro", DOUBLES, **env).stdout
    assert "a by google/gemini-2.5-pro', 'b by google/gemini-2.5-pro" in found


def test_colab_generator_failure_says_what_to_do():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": json.dumps([None])}
    last = ask("", DOUBLES, **env).stderr.splitlines()[-1]
    assert last.startswith("ConnectionError: Colab's model failed (RateLimitError: ")
    assert "run this cell again" in last


def test_colab_generator_elsewhere():
    found = ask()
    assert found.stdout == "False\n"
    assert "google.colab.ai is missing: it exists on Colab only" in found.stderr


def test_colab_is_not_asked_headless():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": '["one"]', "HEADLESS": "1"}
    assert ask("", DOUBLES, **env).stdout.startswith("False\n")
