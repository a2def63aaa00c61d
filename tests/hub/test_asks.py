"""The Hub's library never asks Colab's secrets by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.hub import run_without_token

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
# The stand-in of the Hub has a config and nothing else: where each step ends.
ENDS = {
    "token": "",
    "access": "",
    "config": "",
    "tokenizer": "TypeError",
    "model": "OSError",
    "download": "KeyError",
    "dataset": "DatasetNotFoundError",
    "training": "",
}


@pytest.mark.slow
def test_the_hubs_library_does_not_ask_colab(endpoint, tmp_path):
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_WAIT": "0", "HF_ENDPOINT": endpoint}
    env["HEADLESS"] = "1"  # so that the course itself does not ask
    run = run_without_token(
        [str(HELPERS / "count_asks.py"), "some/public"],
        tmp_path,
        HELPERS / "google_colab",
        **env,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == {step: [{}, end] for step, end in ENDS.items()}
