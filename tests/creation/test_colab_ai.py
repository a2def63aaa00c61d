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


def test_unknown_model_is_refused_with_the_names_that_there_are():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": '["one"]'}
    last = ask("google/gemini-0", DOUBLES, **env).stderr.splitlines()[-1]
    assert last.startswith("ValueError: Colab has no model 'google/gemini-0'. It has ")
    assert "google/gemini-2.5-flash, google/gemini-2.5-pro." in last
    env["COLAB_DOUBLE_MODELS"] = "failed"
    last = ask("google/gemini-2.5-pro", DOUBLES, **env).stderr.splitlines()[-1]
    assert "Colab's model failed (ModelProxyServiceError: " in last


def test_declined_prompt_does_not_end_the_run():
    """It would be declined again in the next run, too."""
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": '["one", "declined"]'}
    lines = ask("", DOUBLES, **env).stdout.splitlines()
    assert lines[1].startswith("one prompt is left out: Colab's model declined it")
    assert lines[2] == "['one', '']"
    env["COLAB_DOUBLE_AI"] = '["declined"]'
    assert "Colab's model failed (BadRequestError" in ask("", DOUBLES, **env).stderr


def test_colab_enterprise_has_no_model():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": "enterprise"}
    found = ask("", DOUBLES, **env)
    assert found.stdout == "False\n"
    assert "only supported in external Colab" in found.stderr


def test_colab_generator_elsewhere():
    found = ask()
    assert found.stdout == "False\n"
    assert "google.colab.ai is missing (" in found.stderr
    assert "it exists on Colab only" in found.stderr


def test_colab_is_not_asked_headless():
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_AI": '["one"]', "HEADLESS": "1"}
    assert ask("", DOUBLES, **env).stdout.startswith("False\n")
