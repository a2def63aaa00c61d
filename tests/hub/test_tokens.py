"""Where the token is found, and that no text contains it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from helpers.hub import GRANTED, PLAIN, SETTINGS, TOKENS, WRONG, run_without_token
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import hub
from colab_utils.hub import tokens

FIND = Path(__file__).resolve().parents[1] / "helpers" / "find_token.py"

# --- no text holds the token ---------------------------------------------------------

ALNUM = st.characters(codec="ascii", categories=["L", "N"])


@given(st.text(), st.text(min_size=1), st.text())
def test_scrub_removes_any_token(before, token, after):
    token = token.strip().strip("\"'").strip()
    clean = hub.scrub(before + token + after, token)
    assert not token or token not in clean


@given(st.text(), st.text(alphabet=ALNUM, min_size=34, max_size=37))
def test_scrub_removes_an_unknown_token(before, secret):
    assert f"hf_{secret}" not in hub.scrub(f"{before}hf_{secret}", None)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_scrub_keeps_other_text(text):
    assert hub.scrub(f"{text} meta-llama/Llama-2-7b-hf", None).endswith(
        " meta-llama/Llama-2-7b-hf"
    )
    if "hf_" not in text:
        assert hub.scrub(text, None) == text


# --- where the token is found --------------------------------------------------------


def digest(token: str | None) -> str:
    return f"found: {hashlib.sha256(token.encode()).hexdigest() if token else None}"


def find(folder: Path, expected: str | None, *path: Path, **env: str) -> list[str]:
    """Return the lines that `token()` printed; assert that they show no token."""
    result = run_without_token([str(FIND)], folder, *path, **env)
    *lines, found, shown = result.stdout.splitlines()
    lines, again = lines[: lines.index("again")], lines[lines.index("again") + 1 :]
    # A second call prints nothing, and does not ask secrets that did not answer.
    assert all(line.startswith("asked for ") for line in again)
    assert not (again and tokens.NO_ANSWER in lines)
    assert found == digest(expected), result.stdout + result.stderr
    assert not any(token in result.stdout + result.stderr for token in TOKENS)
    assert result.stderr == ""
    assert "None" in shown if expected is None else "hf_***" in shown
    return lines


def log_in(folder: Path, token: str) -> None:
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(token)


@pytest.mark.slow
def test_token_order_of_sources(tmp_path):
    log_in(tmp_path, WRONG)
    (tmp_path / ".env").write_text(f"HF_TOKEN={PLAIN}\n")
    both = {"HF_TOKEN": GRANTED, "huggingface": PLAIN}
    (line,) = find(tmp_path, GRANTED, **both)
    assert line == "Hugging Face token: the environment variable HF_TOKEN"
    (line,) = find(tmp_path, GRANTED, huggingface=GRANTED)
    assert line == "Hugging Face token: the environment variable huggingface"
    (line,) = find(tmp_path, PLAIN)
    assert line == f"Hugging Face token: HF_TOKEN in {tmp_path / '.env'}"
    (tmp_path / ".env").unlink()
    (line,) = find(tmp_path, WRONG)
    assert line == "Hugging Face token: the login kept by `hf auth login`"


def test_token_none_says_how_to_get_one(tmp_path):
    (line,) = find(tmp_path, None)
    assert line.startswith("Hugging Face token: none; public models do not need one")
    assert SETTINGS in line and "`huggingface`" in line


@pytest.mark.slow
@pytest.mark.parametrize("blank", ["", "  ", "\n", '""', "' '"])
def test_token_ignores_a_blank_variable(tmp_path, blank):
    log_in(tmp_path, PLAIN)
    (line,) = find(tmp_path, PLAIN, HF_TOKEN=blank)
    assert "hf auth login" in line


@pytest.mark.parametrize("pasted", [f" {PLAIN}\n", f'"{PLAIN}"', f"' {PLAIN} '\r\n"])
def test_token_strips_what_copying_adds(tmp_path, pasted):
    find(tmp_path, PLAIN, HF_TOKEN=pasted)


def test_token_of_an_odd_form_is_used(tmp_path):
    (line,) = find(tmp_path, "api_org_old_style", HF_TOKEN="api_org_old_style")
    assert "HF_TOKEN" in line and 'does not begin with "hf_"' in line
    assert "old_style" not in line


@pytest.mark.slow
@pytest.mark.parametrize("broken", [f"{PLAIN} {WRONG}", f"{PLAIN}\n{WRONG}", "hf_é"])
def test_token_ignores_a_broken_value(tmp_path, broken):
    log_in(tmp_path, GRANTED)
    first, second = find(tmp_path, GRANTED, HF_TOKEN=broken)
    assert first.startswith("the environment variable HF_TOKEN is ignored")
    assert "hf auth login" in second


@pytest.mark.slow
def test_token_reads_dotenv_up_to_the_clone_root(tmp_path):
    root, inner = tmp_path / "clone", tmp_path / "clone" / "notebooks"
    inner.mkdir(parents=True)
    (tmp_path / ".env").write_text(f"HF_TOKEN={WRONG}")
    (root / ".env").write_text(f"# mine\nexport huggingface='{PLAIN}'\n")
    find(inner, None)  # no clone yet: only the folder itself is looked at
    (root / "pyproject.toml").touch()
    (root / "colab_utils").mkdir()
    (line,) = find(inner, PLAIN)
    assert line == f"Hugging Face token: huggingface in {root / '.env'}"
    (inner / ".env").write_text("OTHER=1\n")
    find(inner, PLAIN)
    (inner / ".env").write_text(f"HF_TOKEN={GRANTED}\n")
    find(inner, GRANTED)


def test_token_ignores_an_unreadable_dotenv(tmp_path):
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=\xff\xfe" + PLAIN.encode())
    first, second = find(tmp_path, None)
    assert ".env is ignored" in first and "none" in second


@settings(deadline=None)  # it writes a file
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_token_survives_any_dotenv(text):
    here, printed = Path.cwd(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            Path(".env").write_text(f"{text}\n{PLAIN}\n", encoding="utf-8")
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                found = tokens._from_dotenv()
        finally:
            os.chdir(here)
    assert found is None or found[0]
    assert PLAIN not in printed.getvalue()


# --- Colab's secrets -----------------------------------------------------------------

# A stand-in for google.colab with its exception classes. NotebookAccessError is not an
# errors.Error. get() raises one type for a missing secret, another for a closed one.
USERDATA = """
import json, os
from google.colab import errors

class NotebookAccessError(Exception):
    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")

class SecretNotFoundError(errors.Error):
    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")

class TimeoutException(errors.Error):
    def __init__(self, key):
        super().__init__(f"Requesting secret {key} timed out.")

def get(key):
    print("asked for", key)
    secret = json.loads(os.environ["SECRETS"]).get(key, SecretNotFoundError.__name__)
    if secret in ("NotebookAccessError", "SecretNotFoundError", "TimeoutException"):
        raise globals()[secret](key)
    if secret == "Error":
        raise errors.Error("odd")
    return secret
"""


@pytest.fixture
def colab(tmp_path):
    package = tmp_path / "stand-in" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "errors.py").write_text("class Error(Exception):\n    pass\n")
    (package / "userdata.py").write_text(USERDATA)
    (tmp_path / "home").mkdir()

    def search(expected: str | None, secrets: dict[str, str], **env: str) -> list[str]:
        env |= {"COLAB_RELEASE_TAG": "x", "SECRETS": json.dumps(secrets)}
        return find(tmp_path / "home", expected, tmp_path / "stand-in", **env)

    return search


def test_token_colab_secret(colab):
    lines = colab(GRANTED, {"huggingface": f"{GRANTED}\n", "HF_TOKEN": PLAIN})
    assert lines == [
        "asked for huggingface",
        "Hugging Face token: Colab's secret `huggingface`",
    ]


def test_token_colab_second_name(colab):
    asked, again, line = colab(PLAIN, {"HF_TOKEN": PLAIN})
    assert (asked, again) == ("asked for huggingface", "asked for HF_TOKEN")
    assert line == "Hugging Face token: Colab's secret `HF_TOKEN`"


def test_token_colab_without_secrets(colab):
    *asked, line = colab(None, {})
    assert len(asked) == 2 and "none" in line and "secret `huggingface`" in line


def test_token_colab_blank_secret(colab):
    lines = colab(PLAIN, {"huggingface": " ", "HF_TOKEN": PLAIN})
    assert lines[-1] == "Hugging Face token: Colab's secret `HF_TOKEN`"


def test_token_colab_closed_secret(colab):
    lines = colab(None, {"huggingface": "NotebookAccessError"})
    assert "`huggingface` is closed to this notebook" in lines[1]
    assert "'Notebook access'" in lines[1]
    assert "asked for HF_TOKEN" in lines


def test_token_colab_waits_for_a_timeout_once(colab):
    asked, told, line = colab(None, {"huggingface": "TimeoutException"})
    assert asked == "asked for huggingface"
    assert "only in Colab's web page" in told and "none" in line


def test_token_colab_unknown_error(colab):
    lines = colab(PLAIN, {"huggingface": "Error", "HF_TOKEN": PLAIN})
    assert "`huggingface` cannot be read: Error" in lines[1]


def test_token_colab_is_not_asked_when_headless_or_set(colab):
    (line,) = colab(None, {"huggingface": PLAIN}, HEADLESS="1")
    assert "none" in line
    (line,) = colab(GRANTED, {"huggingface": PLAIN}, HF_TOKEN=GRANTED)
    assert "environment" in line


def test_token_colab_without_userdata(tmp_path):
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "__init__.py").touch()
    first, second = find(tmp_path, None, tmp_path, COLAB_RELEASE_TAG="x")
    assert "userdata is missing" in first and "none" in second


def test_token_stays_out_of_the_module(tmp_path):
    code = "from colab_utils.hub import tokens; tokens.token(); print(vars(tokens))"
    result = run_without_token(["-c", code], tmp_path, HF_TOKEN=PLAIN)
    assert "NAMES" in result.stdout and PLAIN not in result.stdout
