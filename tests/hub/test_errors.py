"""The Hub's errors in plain words, asked of a real server on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.hub import GRANTED, PLAIN, SETTINGS, TOKENS, WRONG, run_without_token
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import hub

ASK = Path(__file__).resolve().parents[1] / "helpers" / "ask_hub.py"


def ask(folder: Path, cases: list[tuple], **env: str):
    """Return the outcomes of the cases, the printed lines, and standard error."""
    result = run_without_token([str(ASK), json.dumps(cases)], folder, **env)
    assert result.returncode == 0, result.stderr
    *printed, last = result.stdout.splitlines()
    return json.loads(last), printed, result.stderr


LICENSE = "https://huggingface.co/some/gated"
# how it is asked, repository, token -> error, and what its sentence says
CASES = {
    ("check", "some/public", None): ("", []),
    ("check", "some/public", PLAIN): ("", []),
    ("check", "some/gated", GRANTED): ("", []),
    ("check", "some/gated", None): (
        "PermissionError",
        ["some/gated is gated", "no token was given", LICENSE, SETTINGS, "Colab"],
    ),
    ("check", "some/gated", PLAIN): (
        "PermissionError",
        ["The token works", "Accept the license", LICENSE, "fine-grained"],
    ),
    ("check", "some/gated", WRONG): (
        "PermissionError",
        ["wrong, expired or revoked", SETTINGS, "`huggingface`"],
    ),
    ("check", "some/public", WRONG): ("PermissionError", ["wrong, expired or revoked"]),
    ("check", "no/such", None): (
        "FileNotFoundError",
        ["no/such does not exist", "none was given", SETTINGS],
    ),
    ("check", "no/such", PLAIN): (
        "FileNotFoundError",
        ["no/such does not exist", "not open to this token's owner"],
    ),
    ("check", "mine/readonly", PLAIN): ("PermissionError", ["`write`", SETTINGS]),
    ("check", "echo/token", PLAIN): ("PermissionError", ["denied access"]),
    ("check", "bad/gateway", None): ("ConnectionError", ["502", "Try again"]),
    ("check", "too/many", None): ("ConnectionError", ["429", "too many"]),
    ("check", "hiccup/limit", None): ("", []),
    ("check", "hiccup/error", None): ("", []),
    ("check", "hiccup/busy", None): ("", []),
    ("info", "never/answers", None): ("ConnectionError", ["was not reached"]),
    ("info", "network/login", None): ("ConnectionError", ["Another page", "log in"]),
    ("config.json", "network/login", None): ("ConnectionError", ["Another page"]),
    ("transformers", "network/login", None): ("ConnectionError", ["Another page"]),
    ("info", "network/loop", None): ("ConnectionError", ["Another page", "proxy"]),
    ("check", "some/public", PLAIN + "\r\nX: y"): (
        "PermissionError",
        ["copy it whole"],
    ),
    ("check", "some/public", PLAIN + "é"): ("PermissionError", ["copy it whole"]),
    ("config.json", "some/gated", PLAIN): ("PermissionError", ["Accept the license"]),
    ("config.json", "some/public", WRONG): ("PermissionError", ["wrong, expired"]),
    ("absent.bin", "some/public", None): ("FileNotFoundError", ["no such file"]),
    ("config.json@v9", "some/public", None): (
        "FileNotFoundError",
        ["no such revision"],
    ),
    ("config.json", "bad name", None): ("FileNotFoundError", ["owner/name"]),
    ("transformers", "some/public", PLAIN): ("", []),
    ("transformers", "some/gated", None): ("PermissionError", ["no token was given"]),
    ("transformers", "some/gated", PLAIN): (
        "PermissionError",
        ["The token works", LICENSE],
    ),
    ("transformers", "some/gated", WRONG): ("PermissionError", ["wrong, expired"]),
    ("transformers", "no/such", None): ("FileNotFoundError", ["does not exist"]),
    ("transformers", "./absent/folder", None): ("FileNotFoundError", ["a folder here"]),
}


@pytest.fixture(scope="module")
def answers(endpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    results, printed, stderr = ask(folder, list(CASES), HF_ENDPOINT=endpoint)
    return dict(zip(CASES, results, strict=True)), printed, stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_hub_errors_explains_each_answer(answers, case):
    kind, sentence, trace = answers[0][case]
    expected, parts = CASES[case]
    assert kind == expected, trace
    for part in parts:
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.slow
def test_hub_errors_never_shows_the_token(answers):
    results, printed, stderr = answers
    # Standard error has the traceback, which also shows the original error.
    everything = json.dumps([list(results.values()), printed, stderr])
    for token in TOKENS:
        assert token not in everything
    # The original error is shown unless it contains the token, as that of the echo.
    shown = [case[1] for case in CASES if "direct cause" in results[case][2]]
    assert "some/gated" in shown and "echo/token" not in shown


def test_can_read(endpoint, tmp_path):
    cases = {
        ("some/public", None): (True, None),
        ("some/gated", GRANTED): (True, None),
        ("some/gated", PLAIN): (False, "Accept the license"),
        ("some/gated", None): (False, "no token was given"),
        ("some/public", WRONG): (False, "wrong, expired or revoked"),
        ("no/such", None): (False, "does not exist"),
        ("echo/token", PLAIN): (False, "denied access"),
        ("bad/gateway", None): (False, "502"),
        ("not a name", None): (False, "owner/name"),
        ("some/public", PLAIN + "\nx"): (False, "copy it whole"),
    }
    asked = [("can_read", *case) for case in cases]
    results, printed, stderr = ask(tmp_path, asked, HF_ENDPOINT=endpoint)
    assert [result[1] for result in results] == [ok for ok, _ in cases.values()]
    printed = [line for line in printed if ": again in" not in line]
    reasons = [reason for _, reason in cases.values() if reason]
    assert len(printed) == len(reasons)
    for line, reason in zip(printed, reasons, strict=True):
        assert reason in line
    assert not any(token in f"{printed}{stderr}" for token in TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Check the network, then run the"),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9", "KAGGLE_KERNEL_RUN_TYPE": "x"},
            "Switch Settings > Internet on",
        ),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids"),
    ],
)
def test_hub_errors_without_network(tmp_path, env, sentence):
    ways = ["can_read", "check"]
    if "HF_HUB_OFFLINE" in env:  # else these try again for 20 seconds
        ways += ["config.json", "transformers"]
    cases = [(way, "some/public", PLAIN) for way in ways]
    results, printed, _ = ask(tmp_path, cases, **env)
    assert results[0][1] is False
    assert len(printed) == 1 and sentence in printed[0]
    for kind, text, trace in results[1:]:
        assert (kind, sentence in text) == ("ConnectionError", True), trace


def test_hub_errors_without_network_and_cache():
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing, error = LocalEntryNotFoundError("not here"), OSError("couldn't connect")
    missing.__cause__ = httpx.ConnectError("[Errno -2] Name or service not known")
    error.__cause__ = missing
    with (
        pytest.raises(ConnectionError, match="a/b is not on this machine") as caught,
        hub.hub_errors("a/b", None),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [FileNotFoundError("train.jsonl"), KeyError("x"), OSError(28, "disk full")]
)
def test_hub_errors_passes_other_errors(error):
    with pytest.raises(type(error)) as caught, hub.hub_errors("a/b", PLAIN):
        raise error
    assert caught.value is error


def test_hub_errors_scrubs_unknown_errors():
    with pytest.raises(OSError) as caught, hub.hub_errors("a/b", PLAIN):
        raise OSError(f"could not send {PLAIN}")
    assert PLAIN not in str(caught.value) and "could not send ***" in str(caught.value)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_explain_scrubs_unknown_errors():
    text = hub.explain(RuntimeError(f"odd {GRANTED}"), "a/b", True)
    assert text == "RuntimeError: odd hf_***"


@settings(deadline=None)  # the first call imports huggingface_hub
@given(st.text())
def test_hub_errors_message_never_contains_the_token(text):
    with pytest.raises(OSError) as caught, hub.hub_errors(f"x/{PLAIN}", PLAIN):
        raise OSError(f"{text}{PLAIN}{text}")
    assert PLAIN not in str(caught.value)
