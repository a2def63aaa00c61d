"""Recipes and cards can be read by programs and the Hub; a push says what it lacks."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from colab_utils import auth, recipes

ROOT = Path(__file__).resolve().parents[1]
RIGHT, WRONG = "hf_" + "RightRight" * 4, "hf_" + "WrongWrong" * 4


def test_versions_are_those_installed(monkeypatch):
    import torch

    found = recipes.versions()["torch"]  # of some builds without the `+cu130`
    assert found.partition("+")[0] == torch.__version__.partition("+")[0]
    monkeypatch.setattr(recipes, "PACKAGES", ("torch", "no-such-package"))
    assert set(recipes.versions()) == {"torch"}


def test_the_address_is_that_of_pyproject():
    assert recipes.address() in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 3])
def test_sha256(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert recipes.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    made = recipes.write(tmp_path, kind="dataset", rows={"in": 3}, note="é")
    assert recipes.read(tmp_path) == made
    assert made["rows"] == {"in": 3} and made["versions"] == recipes.versions()
    assert made["made"].endswith("+00:00")
    recipes.write(tmp_path, kind="other")
    assert recipes.read(tmp_path)["kind"] == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


def test_what_is_not_json_leaves_the_old_recipe(tmp_path):
    made = recipes.write(tmp_path, kind="dataset")
    with pytest.raises(TypeError):
        recipes.write(tmp_path, kind=object())
    assert recipes.read(tmp_path) == made


def test_the_hub_can_read_the_card(tmp_path):
    header = {"tags": ["a: b", "#c"], "license": None, "base_model": "é/x"}
    recipes.write_card(tmp_path, header, "my: data", "Text.\n---\nMore.\n")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"tags": ["a: b", "#c"], "base_model": "é/x"}
    assert body.startswith("\n# my: data\n\nText.\n---\nMore.\n\n")
    assert recipes.address() in body
    assert DatasetCard(text).data.tags == ["a: b", "#c"]


# --- pushing, to a hub on this machine ------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as creates a repository and takes a commit of small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {RIGHT}":
            return self.answer(401, {"error": "Invalid credentials"})
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0].get("name") == "odd":
            return self.answer(418, {"error": "I'm a teapot"})
        self.server.taken.append((self.path, lines))
        address = f"http://127.0.0.1:{self.server.server_port}/datasets/me/mine"
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in lines[0]["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            return self.answer(
                200, {"commitUrl": f"{address}/commit/1", "commitOid": "1"}
            )
        return self.answer(200, {"url": address})

    def do_GET(self):
        self.answer(404, {})

    def answer(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.taken = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


PUSH = """
import sys
from pathlib import Path
from colab_utils import recipes
try:
    print("pushed:", recipes.push(Path("mine"), sys.argv[1], kind="dataset"))
except OSError as error:
    print(type(error).__name__, error, sep=": ")
"""


def push(folder: Path, name: str, hub, **env: str) -> list[str]:
    """What pushing `folder`/mine prints in a fresh interpreter; never the token."""
    (folder / "mine" / "checkpoints").mkdir(parents=True)
    for file in ("train.jsonl", "rejected.jsonl", "README.md", "checkpoints/a.bin"):
        (folder / "mine" / file).write_text("{}\n")
    recipes.write(folder / "mine", kind="dataset")
    hidden = ("HF_", "HUGGING", "huggingface", "COLAB", "KAGGLE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    clean |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    clean["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
    result = subprocess.run(
        [sys.executable, "-c", PUSH, name],
        env=clean | env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert not any(t in result.stdout + result.stderr for t in (RIGHT, WRONG))
    return result.stdout.splitlines()


@pytest.mark.parametrize("base", ["demo", "a folder", "someone/llama-2-7b"])
def test_a_card_names_a_base_model_only_where_others_find_it(tmp_path, base):
    folder, dataset = tmp_path / "mine", tmp_path / "data"
    folder.mkdir()
    dataset.mkdir()
    recipes.write(dataset, rows={"train": 2, "test": 1}, source="a.csv")
    name = str(folder) if base == "a folder" else base
    fields = {"base_model": name, "method": "lora", "results": {"loss": {"base": 2.0}}}
    recipes.write_trained(folder, "adapter", dataset, **fields)
    front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    header = yaml.safe_load(front)
    assert header.get("base_model") == (base if "/" in base else None)
    assert header.get("license") == ("llama2" if "/" in base else None)
    assert recipes.read(folder)["base_model"] == name


@pytest.mark.parametrize("name", ["", " "])
def test_nothing_is_pushed_without_a_name(tmp_path, hub, name):
    lines = push(tmp_path, name, hub, HF_TOKEN=RIGHT)
    assert lines == ["not pushed: HUB_NAME is empty", "pushed: None"]
    assert hub.taken == []


def test_without_a_token_the_reader_learns_how_to_get_one(tmp_path, hub):
    assert push(tmp_path, "me/mine", hub)[-1] == (
        "PermissionError: mine is saved, but not pushed to me/mine: there is no "
        f"Hugging Face token. Next: {auth.MAKE}, with the role `write`; {auth.STORE}."
    )
    assert hub.taken == []


def test_a_wrong_token_is_named_as_the_reason(tmp_path, hub):
    assert push(tmp_path, "me/mine", hub, HF_TOKEN=WRONG)[-1] == (
        "PermissionError: mine is saved, but not pushed to me/mine: "
        "The hub refused the token: it is wrong, expired or revoked. "
        f"Next: {auth.MAKE} and replace the old one ({auth.STORE})."
    )


def test_a_refusal_that_nobody_foresaw_says_that_the_result_is_saved(tmp_path, hub):
    text = "\n".join(push(tmp_path, "me/odd", hub, HF_TOKEN=RIGHT))
    assert "\nOSError: mine is saved, but not pushed to me/odd: " in text
    assert "418" in text


def test_a_push_is_private_and_leaves_out_what_is_not_for_others(tmp_path, hub):
    lines = push(tmp_path, "me/mine", hub, HF_TOKEN=RIGHT)
    assert lines[-1].startswith("pushed: http://127.0.0.1:")
    assert lines[-1].endswith("/datasets/me/mine") and "private" in lines[-2]
    path, (created,) = hub.taken[0]
    assert path == "/api/repos/create"
    assert (created["name"], created["organization"]) == ("mine", "me")
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    (commit,) = (lines for path, lines in hub.taken if "/commit/" in path)
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {"train.jsonl", "README.md", "recipe.json"}
