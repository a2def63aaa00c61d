"""Where the token is found, and that no text contains it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from helpers.hub import GRANTED, PLAIN, SETTINGS, TOKENS, WRONG, run_without_token
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import hub
from colab_utils.hub import tokens

DOUBLES = Path(__file__).resolve().parents[1] / "helpers" / "google_colab"
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
    # A second call prints nothing new, except that a secret did not come in time.
    asked = [line for line in again if line.startswith("asked: ")]
    assert [line for line in again if line not in asked] in ([], lines[:1])
    assert found == digest(expected), result.stdout + result.stderr
    assert not any(token in result.stdout + result.stderr for token in TOKENS)
    assert result.stderr == ""
    assert "None" in shown if expected is None else "***'" in shown
    return lines + asked


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


@pytest.mark.slow
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


@pytest.mark.slow
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
                found = tokens._from_dotenv(tokens.NAMES)
        finally:
            os.chdir(here)
    assert found is None or found[0]
    assert PLAIN not in printed.getvalue()


# --- Colab's secrets -----------------------------------------------------------------


def secret(value: str, access: bool = True) -> dict:
    return {"exists": True, "access": access, "payload": value}


@pytest.fixture
def colab(tmp_path):
    """Search as on Colab, with these answers of its page."""
    (tmp_path / "home").mkdir()

    def search(expected: str | None, secrets: dict, **env: str) -> list[str]:
        env |= {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_WAIT": "0"}
        env |= {"COLAB_DOUBLE_SECRETS": json.dumps(secrets)}
        return find(tmp_path / "home", expected, DOUBLES, **env)

    return search


def test_token_colab_secret(colab):
    lines = colab(
        GRANTED, {"huggingface": secret(f"{GRANTED}\n"), "HF_TOKEN": secret(PLAIN)}
    )
    assert lines == [
        "Hugging Face token: Colab's secret `huggingface`",
        "asked: {'huggingface': 2}",
    ]


@pytest.mark.slow
def test_token_colab_second_name(colab):
    line, asked = colab(PLAIN, {"HF_TOKEN": secret(PLAIN)})
    assert line == "Hugging Face token: Colab's secret `HF_TOKEN`"
    assert asked == "asked: {'huggingface': 2, 'HF_TOKEN': 2}"


def test_token_colab_without_secrets(colab):
    line, _ = colab(None, {})
    assert "none" in line and "Colab or Kaggle store it as the secret `hugg" in line


@pytest.mark.slow
def test_token_colab_blank_secret(colab):
    line, _ = colab(PLAIN, {"huggingface": secret(" "), "HF_TOKEN": secret(PLAIN)})
    assert line == "Hugging Face token: Colab's secret `HF_TOKEN`"


@pytest.mark.slow
def test_token_colab_closed_secret(colab):
    told, line, _ = colab(
        PLAIN, {"huggingface": secret(GRANTED, False), "HF_TOKEN": secret(PLAIN)}
    )
    assert "`huggingface` is closed to this notebook" in told
    assert "'Notebook access'" in told
    assert line == "Hugging Face token: Colab's secret `HF_TOKEN`"


@pytest.mark.slow
def test_token_colab_access_granted_too_late(colab):
    """Outside of IPython each call asks again, and each says what to do."""
    told, line, asked = colab(None, {"huggingface": None})
    assert told == (
        "Colab's secret `huggingface`: access was not granted within 10 seconds. Click "
        "'Grant access', then run this cell again. If no window asks (for example in "
        "VS Code), store HF_TOKEN=... in the file .env instead"
    )
    assert "none" in line and asked == "asked: {'huggingface': 2}"


CELLS = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in (
    "from colab_utils import hub; from google.colab import _message",
    "print(hub.token(), hub.token(), _message.calls())",
    "print([hub.token()], [hub.token()], _message.calls())",
):
    assert shell.run_cell(cell, store_history=True).success
"""


@pytest.mark.slow
def test_token_colab_asks_once_a_cell_and_again_in_the_next(tmp_path):
    """The second click is fast; a call that timed out is not made twice in a cell."""
    secrets = json.dumps({"huggingface": [None, secret(GRANTED)]})
    env = {"COLAB_RELEASE_TAG": "x", "COLAB_DOUBLE_WAIT": "0"}
    run = run_without_token(
        ["-c", CELLS], tmp_path, DOUBLES, COLAB_DOUBLE_SECRETS=secrets, **env
    )
    told, _, first, found, second = run.stdout.splitlines()
    assert "was not granted within 10 seconds" in told
    assert first == "None None {'huggingface': 1}"
    assert found == "Hugging Face token: Colab's secret `huggingface`"
    assert second == "['hf_***'] ['hf_***'] {'huggingface': 3}"


@pytest.mark.slow
def test_token_colab_unknown_error(colab, tmp_path):
    """A name with a space is refused by Colab; so is what nobody thought of."""
    page = tmp_path / "broken" / "google" / "colab"
    shutil.copytree(DOUBLES / "google" / "colab", page)
    with (page / "userdata.py").open("a") as file:
        file.write("def get(key):\n    raise errors.Error('odd')\n")
    env = {"COLAB_RELEASE_TAG": "x"}
    first, second, line = find(tmp_path, None, tmp_path / "broken", **env)[:3]
    assert "`huggingface` cannot be read: Error" in first
    assert "`HF_TOKEN` cannot be read: Error" in second and "none" in line


@pytest.mark.slow
def test_token_colab_is_not_asked_when_headless_or_set(colab):
    (line,) = colab(None, {"huggingface": secret(PLAIN)}, HEADLESS="1")
    assert "none" in line
    (line,) = colab(GRANTED, {"huggingface": secret(PLAIN)}, HF_TOKEN=GRANTED)
    assert "environment" in line


@pytest.mark.slow
def test_token_colab_without_userdata(tmp_path):
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "__init__.py").touch()
    first, second = find(tmp_path, None, tmp_path, COLAB_RELEASE_TAG="x")
    assert "userdata is missing" in first and "none" in second


# --- Kaggle's secrets ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected", "lines"),
    [
        ({}, PLAIN, ["Hugging Face token: Kaggle's secret `HF_TOKEN`"]),
        ({"HEADLESS": "1"}, PLAIN, ["Hugging Face token: Kaggle's secret `HF_TOKEN`"]),
        (
            {"KAGGLE_DOUBLE_SECRETS": json.dumps({"huggingface": GRANTED})},
            GRANTED,
            ["Hugging Face token: Kaggle's secret `huggingface`"],
        ),
        ({"KAGGLE_DOUBLE_SECRETS": "{}"}, None, ["Hugging Face token: none; public"]),
        (
            {"KAGGLE_DOUBLE_INTERNET": "off"},
            None,
            [
                "Kaggle's secret `huggingface` cannot be read: Kaggle did not answer. "
                "Switch Settings > Internet on, and attach the secret in Add-ons > Sec",
                "Kaggle's secret `HF_TOKEN` cannot be read: Kaggle did not answer.",
                "Hugging Face token: none",
            ],
        ),
        (
            {"KAGGLE_USER_SECRETS_TOKEN": None},
            None,
            [
                "Kaggle's secret `huggingface` cannot be read: CredentialError",
                "Kaggle's secret `HF_TOKEN` cannot be read: CredentialError",
                "Hugging Face token: none",
            ],
        ),
    ],
    ids=["attached", "headless", "first name", "none", "no internet", "denied"],
)
def test_token_kaggle_secret(tmp_path, changes, expected, lines):
    env = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_USER_SECRETS_TOKEN": "jwt"}
    env["KAGGLE_DOUBLE_SECRETS"] = json.dumps({"HF_TOKEN": f" {PLAIN}"})
    env = {k: v for k, v in (env | changes).items() if v is not None}
    found = find(tmp_path, expected, DOUBLES, **env)
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == (
        lines
    )


@pytest.mark.slow
def test_token_kaggle_without_its_package(tmp_path):
    first, second = find(tmp_path, None, KAGGLE_KERNEL_RUN_TYPE="Batch")
    assert "kaggle_secrets is missing" in first and "none" in second


@pytest.mark.slow
def test_token_stays_out_of_the_module(tmp_path):
    code = "from colab_utils.hub import tokens; tokens.token(); print(vars(tokens))"
    result = run_without_token(["-c", code], tmp_path, HF_TOKEN=PLAIN)
    assert "NAMES" in result.stdout and PLAIN not in result.stdout


# --- keys of other services ----------------------------------------------------------

KEY = "sk-Key-of-another-service-1234567890"
ASK = """
from colab_utils import hub
found = hub.secret("OPENAI_API_KEY")
print([found], found == %r, hub.scrub(f"no {found}", found))
"""


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({"OPENAI_API_KEY": f" {KEY}\n"}, "the environment variable OPENAI_API_KEY"),
        (
            {
                "COLAB_RELEASE_TAG": "x",
                "COLAB_DOUBLE_SECRETS": json.dumps({"OPENAI_API_KEY": secret(KEY)}),
            },
            "Colab's secret `OPENAI_API_KEY`",
        ),
        (
            {
                "KAGGLE_KERNEL_RUN_TYPE": "Batch",
                "KAGGLE_USER_SECRETS_TOKEN": "jwt",
                "KAGGLE_DOUBLE_SECRETS": json.dumps({"OPENAI_API_KEY": KEY}),
            },
            "Kaggle's secret `OPENAI_API_KEY`",
        ),
        ({}, "OPENAI_API_KEY in "),
    ],
    ids=["environment", "Colab", "Kaggle", "dotenv"],
)
def test_secret_is_found_by_name_and_not_shown(tmp_path, env, place):
    log_in(tmp_path, PLAIN)  # the token of another service is no answer
    if not env:
        (tmp_path / ".env").write_text(f"HF_TOKEN={PLAIN}\nOPENAI_API_KEY={KEY}\n")
    run = run_without_token(["-c", ASK % KEY], tmp_path, DOUBLES, **env)
    line, shown = run.stdout.splitlines()
    assert line.startswith(f"OPENAI_API_KEY: {place}"), run.stderr
    assert shown == "['***'] True no ***"


@pytest.mark.slow
def test_secret_none(tmp_path):
    log_in(tmp_path, PLAIN)
    run = run_without_token(
        ["-c", ASK % KEY], tmp_path, HF_TOKEN=GRANTED, OPENAI_API_KEY="a b"
    )
    assert run.stdout.splitlines() == [
        "the environment variable OPENAI_API_KEY is ignored: a token has no spaces and "
        "no special characters",
        "[None] False no None",
    ]
