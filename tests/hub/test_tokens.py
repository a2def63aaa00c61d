"""The token and the hub's refusals, against a real server on this machine.

huggingface_hub reads its settings when it is imported, so what asks the server runs in
an interpreter of its own. The server speaks the part of the hub's protocol that decides
who may read: the status, `X-Error-Code` and `X-Error-Message`.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils.hub import tokens as auth

ROOT = Path(__file__).resolve().parents[2]
GRANTED = "hf_GrantedGrantedGrantedGrantedGranted1"
PLAIN = "hf_PlainPlainPlainPlainPlainPlainPlain2"
WRONG = "hf_WrongWrongWrongWrongWrongWrongWrong3"
TOKENS = (GRANTED, PLAIN, WRONG)
MINE = ("HF_", "HUGGING", "huggingface", "COLAB", "KAGGLE", "CI", "HEADLESS")


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers for public, gated, missing and troubled repositories."""

    def answer(self, status: int, code: str = "", message: str = "", body: bytes = b""):
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = self.path.removeprefix("/api/models/").strip("/").split("/")
        repo = "/".join(parts[:2])
        if repo == "echo/token":  # a server that repeats what it was given
            self.answer(403, message=f"forbidden for {token}")
        elif repo == "bad/gateway":
            self.answer(502)
        elif repo == "too/many":
            self.answer(429)
        elif token and token not in (GRANTED, PLAIN):
            self.answer(401, message="Invalid credentials in Authorization header")
        elif repo == "mine/readonly":
            self.answer(403, message="you need the right to write")
        elif repo == "some/gated" and token != GRANTED:
            self.answer(403 if token else 401, "GatedRepo", "Access is restricted")
        elif repo in ("some/gated", "some/public"):
            body = b'{"model_type": "llama"}'
            if "resolve" in parts and parts[-1] != "config.json":
                self.answer(404, "EntryNotFound", "Entry not found")
            elif "resolve" in parts and "main" not in parts:
                self.answer(404, "RevisionNotFound", "Invalid rev id")
            else:
                self.answer(200, body=body)
        else:
            self.answer(404 if token else 401, "RepoNotFound", "Repository not found")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def endpoint():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(code: str, folder: Path, *path: Path, **env: str):
    """Run `code` in a fresh interpreter in `folder`, where no token is known."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(MINE)}
    search = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": search, "HF_HOME": str(folder / "hf")} | env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- what the hub's answers mean -----------------------------------------------------

DRIVER = """
import json, sys, traceback
from colab_utils.hub import tokens as auth

def one(how, repo, token):
    with auth.hub_errors(repo, token):
        if how == "check":
            from huggingface_hub import auth_check
            auth_check(repo, token=token or False)
        elif how == "transformers":
            from transformers import AutoConfig
            AutoConfig.from_pretrained(repo, token=token or False)
        else:
            from huggingface_hub import hf_hub_download
            name, _, revision = how.partition("@")
            hf_hub_download(repo, name, revision=revision or None, token=token or False)

results = []
for how, repo, token in json.loads(sys.argv[1]):
    if how == "can_read":
        results.append(["", auth.can_read(repo, token), ""])
        continue
    try:
        one(how, repo, token)
        results.append(["", "", ""])
    except Exception as error:
        trace = traceback.format_exc()
        results.append([type(error).__name__, str(error), trace])
print(json.dumps(results))
"""


def ask(folder: Path, cases: list[tuple], **env: str):
    code = f"import sys; sys.argv = ['', {json.dumps(cases)!r}]\n{DRIVER}"
    result = run(code, folder, **env)
    assert result.returncode == 0, result.stderr
    *printed, last = result.stdout.splitlines()
    return json.loads(last), printed, result.stderr


LICENCE = "https://huggingface.co/some/gated"
SETTINGS = "https://huggingface.co/settings/tokens"
# how it is asked, repository, token -> error, and what its sentence says
CASES = {
    ("check", "some/public", None): ("", []),
    ("check", "some/public", PLAIN): ("", []),
    ("check", "some/gated", GRANTED): ("", []),
    ("check", "some/gated", None): (
        "PermissionError",
        ["some/gated is gated", "no token was given", LICENCE, SETTINGS, "Colab"],
    ),
    ("check", "some/gated", PLAIN): (
        "PermissionError",
        ["The token works", "Accept the licence", LICENCE, "fine-grained"],
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
    ("check", "echo/token", PLAIN): ("PermissionError", ["may not do that"]),
    ("check", "bad/gateway", None): ("ConnectionError", ["502", "Try again"]),
    ("check", "too/many", None): ("ConnectionError", ["429", "too many"]),
    ("check", "some/public", PLAIN + "\r\nX: y"): (
        "PermissionError",
        ["copy it whole"],
    ),
    ("check", "some/public", PLAIN + "é"): ("PermissionError", ["copy it whole"]),
    ("config.json", "some/gated", PLAIN): ("PermissionError", ["Accept the licence"]),
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
        ["The token works", LICENCE],
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_the_hubs_answer_is_explained(answers, case):
    kind, sentence, trace = answers[0][case]
    expected, parts = CASES[case]
    assert kind == expected, trace
    for part in parts:
        assert part in sentence
    assert "\n" not in sentence


def test_no_answer_shows_the_token(answers):
    results, printed, stderr = answers
    # The traceback shows the original error as well, so this looks at that too.
    everything = json.dumps([list(results.values()), printed, stderr])
    for token in TOKENS:
        assert token not in everything
    # It is there to be shown: only the echo's original error is withheld.
    shown = [case[1] for case in CASES if "direct cause" in results[case][2]]
    assert "some/gated" in shown and "echo/token" not in shown


def test_can_read(endpoint, tmp_path):
    cases = {
        ("some/public", None): (True, None),
        ("some/gated", GRANTED): (True, None),
        ("some/gated", PLAIN): (False, "Accept the licence"),
        ("some/gated", None): (False, "no token was given"),
        ("some/public", WRONG): (False, "wrong, expired or revoked"),
        ("no/such", None): (False, "does not exist"),
        ("echo/token", PLAIN): (False, "may not do that"),
        ("bad/gateway", None): (False, "502"),
        ("not a name", None): (False, "owner/name"),
        ("some/public", PLAIN + "\nx"): (False, "copy it whole"),
    }
    asked = [("can_read", *case) for case in cases]
    results, printed, stderr = ask(tmp_path, asked, HF_ENDPOINT=endpoint)
    assert [result[1] for result in results] == [ok for ok, _ in cases.values()]
    reasons = [reason for _, reason in cases.values() if reason]
    assert len(printed) == len(reasons)
    for line, reason in zip(printed, reasons, strict=True):
        assert reason in line
    assert not any(token in f"{printed}{stderr}" for token in TOKENS)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "The hub was not reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids"),
    ],
)
def test_no_network(tmp_path, env, sentence):
    ways = ["can_read", "check"]
    if "HF_HUB_OFFLINE" in env:  # else these try again for 20 seconds
        ways += ["config.json", "transformers"]
    cases = [(way, "some/public", PLAIN) for way in ways]
    results, printed, _ = ask(tmp_path, cases, **env)
    assert results[0][1] is False
    assert len(printed) == 1 and sentence in printed[0]
    for kind, text, trace in results[1:]:
        assert (kind, sentence in text) == ("ConnectionError", True), trace


def test_transformers_without_network_and_copy():
    import httpx
    from huggingface_hub.errors import LocalEntryNotFoundError

    missing, error = LocalEntryNotFoundError("not here"), OSError("couldn't connect")
    missing.__cause__ = httpx.ConnectError("[Errno -2] Name or service not known")
    error.__cause__ = missing
    with (
        pytest.raises(ConnectionError, match="a/b is not on this machine") as caught,
        auth.hub_errors("a/b", None),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [FileNotFoundError("train.jsonl"), KeyError("x"), OSError(28, "disk full")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, auth.hub_errors("a/b", PLAIN):
        raise error
    assert caught.value is error


def test_an_error_of_no_known_kind_is_scrubbed():
    with pytest.raises(OSError) as caught, auth.hub_errors("a/b", PLAIN):
        raise OSError(f"could not send {PLAIN}")
    assert PLAIN not in str(caught.value) and "could not send ***" in str(caught.value)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_explain_scrubs_what_it_does_not_know():
    text = auth.explain(RuntimeError(f"odd {GRANTED}"), "a/b", True)
    assert text == "RuntimeError: odd hf_***"


# --- no text holds the token ---------------------------------------------------------

ALNUM = st.characters(codec="ascii", categories=["L", "N"])


@given(st.text(), st.text(min_size=1), st.text())
def test_scrub_removes_any_token(before, token, after):
    token = token.strip().strip("\"'").strip()
    clean = auth.scrub(before + token + after, token)
    assert not token or token not in clean


@given(st.text(), st.text(alphabet=ALNUM, min_size=34, max_size=37))
def test_scrub_knows_a_token_it_was_not_told(before, secret):
    assert f"hf_{secret}" not in auth.scrub(f"{before}hf_{secret}", None)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_scrub_leaves_other_text_alone(text):
    assert auth.scrub(f"{text} meta-llama/Llama-2-7b-hf", None).endswith(
        " meta-llama/Llama-2-7b-hf"
    )
    if "hf_" not in text:
        assert auth.scrub(text, None) == text


@settings(deadline=None)  # the first call imports huggingface_hub
@given(st.text())
def test_no_message_holds_the_token(text):
    with pytest.raises(OSError) as caught, auth.hub_errors(f"x/{PLAIN}", PLAIN):
        raise OSError(f"{text}{PLAIN}{text}")
    assert PLAIN not in str(caught.value)


# --- where the token is found --------------------------------------------------------

FIND = """
from colab_utils.hub import tokens as auth
found = auth.token()
print("again")
assert auth.token() == found
import hashlib
print("found:", hashlib.sha256(found.encode()).hexdigest() if found else None)
print("shown:", repr(found), [found], {"token": found})
"""


def digest(token: str | None) -> str:
    import hashlib

    return f"found: {hashlib.sha256(token.encode()).hexdigest() if token else None}"


def find(folder: Path, expected: str | None, *path: Path, **env: str) -> list[str]:
    """What `token()` printed; that it found `expected`, and showed no token."""
    result = run(FIND, folder, *path, **env)
    *lines, found, shown = result.stdout.splitlines()
    lines, again = lines[: lines.index("again")], lines[lines.index("again") + 1 :]
    # Nothing is told a second time, and no answer is waited for again.
    assert all(line.startswith("asked for ") for line in again)
    assert not (again and auth.NO_ANSWER in lines)
    assert found == digest(expected), result.stdout + result.stderr
    assert not any(token in result.stdout + result.stderr for token in TOKENS)
    assert result.stderr == ""
    assert "None" in shown if expected is None else "hf_***" in shown
    return lines


def log_in(folder: Path, token: str) -> None:
    (folder / "hf").mkdir()
    (folder / "hf" / "token").write_text(token)


def test_the_order_of_the_sources(tmp_path):
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


def test_no_token_says_how_to_get_one(tmp_path):
    (line,) = find(tmp_path, None)
    assert line.startswith("Hugging Face token: none; public models need none")
    assert SETTINGS in line and "`huggingface`" in line


@pytest.mark.parametrize("blank", ["", "  ", "\n", '""', "' '"])
def test_a_blank_variable_counts_as_absent(tmp_path, blank):
    log_in(tmp_path, PLAIN)
    (line,) = find(tmp_path, PLAIN, HF_TOKEN=blank)
    assert "hf auth login" in line


@pytest.mark.parametrize("pasted", [f" {PLAIN}\n", f'"{PLAIN}"', f"' {PLAIN} '\r\n"])
def test_what_copying_adds_is_dropped(tmp_path, pasted):
    find(tmp_path, PLAIN, HF_TOKEN=pasted)


def test_an_odd_token_is_told_and_used(tmp_path):
    (line,) = find(tmp_path, "api_org_old_style", HF_TOKEN="api_org_old_style")
    assert "HF_TOKEN" in line and 'does not begin with "hf_"' in line
    assert "old_style" not in line


@pytest.mark.parametrize("broken", [f"{PLAIN} {WRONG}", f"{PLAIN}\n{WRONG}", "hf_é"])
def test_a_broken_token_is_told_and_left_out(tmp_path, broken):
    log_in(tmp_path, GRANTED)
    first, second = find(tmp_path, GRANTED, HF_TOKEN=broken)
    assert first.startswith("the environment variable HF_TOKEN is left out")
    assert "hf auth login" in second


def test_dotenv_is_looked_for_up_to_the_root_of_the_clone(tmp_path):
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


def test_a_dotenv_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / ".env").write_bytes(b"HF_TOKEN=\xff\xfe" + PLAIN.encode())
    first, second = find(tmp_path, None)
    assert ".env is left out" in first and "none" in second


@settings(deadline=None)  # it writes a file
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_dotenv_breaks_the_search(text):
    import contextlib
    import io
    import tempfile

    here, printed = Path.cwd(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            Path(".env").write_text(f"{text}\n{PLAIN}\n", encoding="utf-8")
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                found = auth._from_dotenv()
        finally:
            os.chdir(here)
    assert found is None or found[0]
    assert PLAIN not in printed.getvalue()


# --- Colab's secrets -----------------------------------------------------------------

# What google.colab offers here, with its exception classes: NotebookAccessError is no
# errors.Error, and get() tells a missing secret from a closed one by the type.
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


def test_colab_secret(colab):
    lines = colab(GRANTED, {"huggingface": f"{GRANTED}\n", "HF_TOKEN": PLAIN})
    assert lines == [
        "asked for huggingface",
        "Hugging Face token: Colab's secret `huggingface`",
    ]


def test_colab_second_name(colab):
    asked, again, line = colab(PLAIN, {"HF_TOKEN": PLAIN})
    assert (asked, again) == ("asked for huggingface", "asked for HF_TOKEN")
    assert line == "Hugging Face token: Colab's secret `HF_TOKEN`"


def test_colab_without_secrets(colab):
    *asked, line = colab(None, {})
    assert len(asked) == 2 and "none" in line and "secret `huggingface`" in line


def test_colab_blank_secret(colab):
    lines = colab(PLAIN, {"huggingface": " ", "HF_TOKEN": PLAIN})
    assert lines[-1] == "Hugging Face token: Colab's secret `HF_TOKEN`"


def test_colab_closed_secret(colab):
    lines = colab(None, {"huggingface": "NotebookAccessError"})
    assert "`huggingface` is closed to this notebook" in lines[1]
    assert "'Notebook access'" in lines[1]
    assert "asked for HF_TOKEN" in lines


def test_colab_timeout_is_waited_for_once(colab):
    asked, told, line = colab(None, {"huggingface": "TimeoutException"})
    assert asked == "asked for huggingface"
    assert "Colab page only" in told and "none" in line


def test_colab_unknown_error(colab):
    lines = colab(PLAIN, {"huggingface": "Error", "HF_TOKEN": PLAIN})
    assert "`huggingface` cannot be read: Error" in lines[1]


def test_colab_is_not_asked_when_nobody_watches_or_the_environment_knows(colab):
    (line,) = colab(None, {"huggingface": PLAIN}, HEADLESS="1")
    assert "none" in line
    (line,) = colab(GRANTED, {"huggingface": PLAIN}, HF_TOKEN=GRANTED)
    assert "environment" in line


def test_colab_without_userdata(tmp_path):
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "__init__.py").touch()
    first, second = find(tmp_path, None, tmp_path, COLAB_RELEASE_TAG="x")
    assert "userdata is missing" in first and "none" in second


def test_nothing_secret_stays_in_the_module(tmp_path):
    code = "from colab_utils.hub import tokens; tokens.token(); print(vars(tokens))"
    result = run(code, tmp_path, HF_TOKEN=PLAIN)
    assert "NAMES" in result.stdout and PLAIN not in result.stdout
