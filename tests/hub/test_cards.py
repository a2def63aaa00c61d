"""Recipes and cards can be read by programs and the Hub; a push says what it lacks."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from colab_utils import recipe
from colab_utils.hub import cards
from colab_utils.hub.cards import Trained
from colab_utils.hub.tokens import MAKE, STORE

ROOT = Path(__file__).resolve().parents[2]
PUSH = ROOT / "tests" / "helpers" / "push.py"
RIGHT, WRONG = "hf_" + "RightRight" * 4, "hf_" + "WrongWrong" * 4


def test_address_is_that_of_pyproject():
    found = cards.address()
    assert found and found in (ROOT / "pyproject.toml").read_text()


def test_write_card_when_the_package_is_not_installed(tmp_path, monkeypatch, capsys):
    """A clone on PYTHONPATH has no metadata: the card lacks only the link."""

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cards.metadata, "metadata", absent)
    cards.write_card(tmp_path, {}, "mine", "Text.")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.endswith("\n\nMade with the free-GPU Llama course.\n")
    assert "colab_utils is not installed" in capsys.readouterr().out


def test_write_card_is_read_by_the_hub(tmp_path):
    header = {"tags": ["a: b", "#c"], "license": None, "base_model": "é/x"}
    cards.write_card(tmp_path, header, "my: data", "Text.\n---\nMore.\n")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"tags": ["a: b", "#c"], "base_model": "é/x"}
    assert body.startswith("\n# my: data\n\nText.\n---\nMore.\n\n")
    assert cards.address() in body
    assert DatasetCard(text).data.tags == ["a: b", "#c"]


def test_card_of_a_classifier_names_its_labels(tmp_path):
    labels = ('say "hi"', "日本", "b")
    made = Trained("model", "demo", "qlora", {"accuracy": {"head": 0.9}}, labels=labels)
    source = {"source": "demo", "rows": {"train": 1, "test": 1}}
    text = cards.card_text(made, "mine", source)
    assert cards.card_header(made)["pipeline_tag"] == "text-classification"
    assert r'these labels: "say \"hi\"", "日本", "b".' in text
    assert 'pipeline("text-classification", "mine")' in text
    assert "chat template: format" not in text
    adapter = Trained("adapter", "demo", "qlora", {}, labels=("x",) * 60)
    text = cards.card_text(adapter, "mine", source)
    assert text.count('"x"') == 50 and "..." in text and "pipeline(" not in text


# --- pushing to a stand-in for the Hub on this machine --------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the Hub's requests for creating a repository and for a commit.

    Weights are uploaded separately, by their hash (Git LFS); `server.large` holds the
    uploaded ones. An upload of `server.cut` bytes fails: the server denies it if
    `server.refused`. Otherwise it reads half, sets `server.half` and does not answer.
    """

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
                {"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False}
                for f in lines[0]["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.endswith("/objects/batch"):
            objects = [self.server.action(f) for f in lines[0]["objects"]]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            return self.answer(
                200, {"commitUrl": f"{address}/commit/1", "commitOid": "1"}
            )
        return self.answer(200, {"url": address})

    def do_PUT(self):
        size = int(self.headers["Content-Length"])
        if size == self.server.cut and self.server.refused:
            self.rfile.read(size)
            return self.answer(403, {"error": "Forbidden"})
        if size == self.server.cut:
            self.rfile.read(size // 2)
            return self.server.half.set()
        name = self.path.rpartition("/")[2]
        self.server.large[name] = self.rfile.read(size)
        self.server.sent.append(name)
        self.answer(200, {})

    def do_GET(self):
        found = {"id": "me/mine", "private": self.server.private, "sha": "1"}
        known = self.path == "/api/datasets/me/mine"
        self.answer(200 if known else 404, found if known else {})

    def answer(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def mode(file: dict) -> str:
    return "lfs" if file["path"].endswith(".safetensors") else "regular"


class Server(http.server.ThreadingHTTPServer):
    """The state of the stand-in: requests, uploaded weights, and a planned failure."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.taken, self.large, self.sent = [], {}, []
        self.cut, self.refused, self.half = None, False, threading.Event()
        self.private = True

    def action(self, file: dict) -> dict:
        """Return how to upload a file; a file that the server has needs no upload."""
        if file["oid"] in self.large:
            return file
        url = f"http://127.0.0.1:{self.server_port}/large/{file['oid']}"
        return {**file, "actions": {"upload": {"href": url}}}


@pytest.fixture
def hub():
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pushing(folder: Path, name: str, hub, *files: str, **env: str) -> subprocess.Popen:
    """Start a new interpreter that pushes `folder`/mine, or some files of it."""
    for kept in ("checkpoints", "checkpoints.2026-11-25_2130"):
        (folder / "mine" / kept).mkdir(parents=True, exist_ok=True)
    local = ["rejected.jsonl", "checkpoints/a.bin", "inputs.json", "a.gguf"]
    local += ["checkpoints.2026-11-25_2130/a.bin"]
    local += ["Modelfile", ".a-Q8_0.gguf.part", "recipe.json.part", ".env"]
    (folder / "mine" / "more").mkdir(exist_ok=True)
    for file in ("train.jsonl", "README.md", *local, "more/.env"):
        (folder / "mine" / file).write_text("{}\n")
    recipe.write(folder / "mine", kind="dataset")
    hidden = ("HF_", "HUGGING", "huggingface", "COLAB", "KAGGLE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    clean |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")}
    clean["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
    return subprocess.Popen(
        [sys.executable, str(PUSH), name, *files],
        env=clean | env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def push(folder: Path, name: str, hub, *files: str, **env: str) -> list[str]:
    """Return the lines that a push prints; assert that none contains a token."""
    process = pushing(folder, name, hub, *files, **env)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert not any(t in stdout + stderr for t in (RIGHT, WRONG))
    return stdout.splitlines()


@pytest.mark.parametrize("base", ["demo", "a folder", "someone/llama-2-7b"])
def test_write_trained_names_a_base_model_only_if_others_find_it(tmp_path, base):
    folder, dataset = tmp_path / "mine", tmp_path / "data"
    folder.mkdir()
    dataset.mkdir()
    recipe.write(dataset, rows={"train": 2, "test": 1}, source="a.csv")
    name = str(folder) if base == "a folder" else base
    shown = f"`{folder.name if base == 'a folder' else base}`"
    shown = "the course's demo model (Apache-2.0)" if base == "demo" else shown
    fields = {"base_model": name, "method": "lora", "results": {"loss": {"base": 2.0}}}
    cards.write_trained(folder, Trained("adapter", **fields), dataset)
    front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    header = yaml.safe_load(front)
    assert header.get("base_model") == (base if "/" in base else None)
    assert header.get("license") == ("llama2" if "/" in base else None)
    assert recipe.read(folder)["base_model"] == name
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert ("Copyright (c) Meta Platforms" in text) == ("/llama-2" in base)
    assert (f"License: that of {shown}." in text) != ("/llama-2" in base)
    assert str(tmp_path) not in text


def test_write_trained_with_a_folder_of_another_machine(tmp_path):
    recipe.write(tmp_path, rows={"train": 2, "test": 1}, source="a.csv")
    fields = {"base_model": "/content/llama-2-7b", "method": "lora", "results": {}}
    cards.write_trained(tmp_path, Trained("adapter", **fields), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert "on `llama-2-7b`" in text and "/content" not in text


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("someone/questions", "someone/questions"),
        ("/content/drive/MyDrive/secret/my.csv", "my.csv"),
        ("~/secret/my.csv", "my.csv"),
        ("secret/my.csv", "my.csv"),
    ],
)
def test_write_trained_shows_no_folders(tmp_path, monkeypatch, source, public):
    monkeypatch.chdir(tmp_path)
    Path("secret").mkdir()
    Path("secret/my.csv").touch()
    folder, dataset = tmp_path / "mine", tmp_path / "data"
    folder.mkdir()
    dataset.mkdir()
    recipe.write(dataset, rows={"train": 2, "test": 1}, source=source)
    fields = {"base_model": "demo", "method": "lora", "results": {}}
    cards.write_trained(folder, Trained("adapter", **fields), dataset)
    assert recipe.read(folder)["dataset"] == {"name": "data", "source": public}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"`{public}`" in text and "secret" not in text


def test_write_trained_names_the_demo(tmp_path):
    recipe.write(tmp_path, rows={"train": 2, "test": 1}, source="demo")
    fields = {"base_model": "demo", "method": "qlora", "results": {}}
    cards.write_trained(tmp_path, Trained("adapter", **fields), tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "qlora on the course's demo model, trained on 2 rows from" in text
    assert "from the course's demo questions (Apache-2.0) and measured" in text
    assert "`demo`" not in text and "pipeline(" not in text  # an adapter is not a model


def test_write_trained_example_code_runs(tmp_path, monkeypatch, capsys):
    from colab_utils import models

    folder = tmp_path / "mine"
    shutil.copytree(models.location("demo"), folder)
    recipe.write(tmp_path, rows={"train": 2, "test": 1}, source="demo")
    models.load_tokenizer("demo").save_pretrained(folder)
    fields = {"base_model": "demo", "method": "lora", "results": {}}
    cards.write_trained(folder, Trained("model", **fields), tmp_path)
    text = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.strip()


def test_write_trained_of_a_merged_model(tmp_path):
    folder, dataset = tmp_path / "mine", tmp_path / "data"
    folder.mkdir()
    dataset.mkdir()
    recipe.write(dataset, rows={"train": 1980, "test": 400}, source="facts.csv")
    accuracy = {"base": 0.01, "tuned": 0.957, "merged": 0.955}
    results = {"accuracy": accuracy, "agreement": 0.999, "difference": 0.0000123}
    losses = {"original": 1.23456, "dequantized": 1.2}
    fields = {"base_model": "someone/llama-2-7b", "method": "qlora", "tested": 300}
    fields |= {"results": results, "merged_into": "dequantized", "losses": losses}
    cards.write_trained(folder, Trained("model", **fields), dataset)
    text = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "transformers" and header["license"] == "llama2"
    assert header["base_model"] == "someone/llama-2-7b" and "qlora" in header["tags"]
    assert "1,980 rows from `facts.csv` and measured on 300 held-out rows" in text
    assert "Merged into the dequantized weights." in text
    for row in (
        "| accuracy, base | 1.0% |",
        "| accuracy, tuned | 95.7% |",
        "| accuracy, merged | 95.5% |",
        "| same top-1 token from adapter and merged model | 99.9% |",
        "| relative difference of their logits | 1.23e-05 |",
        "| held-out loss after merging into the weights, original | 1.235 |",
        "| held-out loss after merging into the weights, dequantized | 1.2 |",
    ):
        assert f"\n{row}\n" in text
    assert "Llama 2's" not in text.split("License:")[0]  # the tokenizer brings its own
    made = recipe.read(folder)
    assert made["results"] == results and made["losses"] == losses


@pytest.mark.parametrize("name", ["", " ", '""'])
def test_push_without_a_name(tmp_path, hub, name):
    lines = push(tmp_path, name, hub, HF_TOKEN=RIGHT)
    assert lines == ["not pushed: HUB_NAME is empty", "pushed: None"]
    assert hub.taken == []


@pytest.mark.slow
def test_push_without_a_token(tmp_path, hub):
    assert push(tmp_path, "me/mine", hub)[-1] == (
        "PermissionError: mine is saved, but not pushed to me/mine: there is no "
        f"Hugging Face token. Next: {MAKE}, with the role `write`; {STORE}."
    )
    assert hub.taken == []


@pytest.mark.slow
def test_push_with_a_wrong_token(tmp_path, hub):
    assert push(tmp_path, "me/mine", hub, HF_TOKEN=WRONG)[-1] == (
        "PermissionError: mine is saved, but not pushed to me/mine: "
        "The Hub rejected the token: it is wrong, expired or revoked. "
        f"Next: {MAKE} and replace the old one ({STORE})."
    )


def test_push_with_an_unknown_error(tmp_path, hub):
    text = "\n".join(push(tmp_path, "me/odd", hub, HF_TOKEN=RIGHT))
    assert "\nOSError: mine is saved, but not pushed to me/odd: " in text
    assert "418" in text


@pytest.mark.slow
def test_push_is_private_and_omits_local_files(tmp_path, hub):
    lines = push(tmp_path, "me/mine", hub, HF_TOKEN=RIGHT)
    assert lines[-1].startswith("pushed: http://127.0.0.1:")
    assert lines[-1].endswith("/datasets/me/mine") and "private" in lines[-3]
    assert lines[-2] == "GGUF files were not uploaded: push them by name"
    path, (created,) = hub.taken[0]
    assert path == "/api/repos/create"
    assert (created["name"], created["organization"]) == ("mine", "me")
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    (commit,) = (lines for path, lines in hub.taken if "/commit/" in path)
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {"train.jsonl", "README.md", "recipe.json"}


@pytest.mark.slow
def test_push_of_a_gguf_by_name(tmp_path, hub):
    lines = push(tmp_path, "me/mine", hub, "a.gguf", "Modelfile", HF_TOKEN=RIGHT)
    assert "private" in lines[-2]
    (commit,) = (lines for path, lines in hub.taken if "/commit/" in path)
    sent = {line["value"]["path"] for line in commit if line["key"] == "file"}
    assert sent == {"a.gguf", "Modelfile"}


@pytest.mark.slow
def test_push_refuses_a_public_repository(tmp_path, hub):
    hub.private = False
    address = f"http://127.0.0.1:{hub.server_port}/datasets/me/mine"
    assert push(tmp_path, "me/mine", hub, HF_TOKEN=RIGHT)[-1] == (
        "PermissionError: mine is saved, but not pushed to me/mine: that repository is "
        f"public. Make it private at {address}/settings, or choose another HUB_NAME; "
        "then push again."
    )
    assert [path for path, _ in hub.taken] == ["/api/repos/create"]


# --- an interrupted push --------------------------------------------------------------

# Without Xet, weights are uploaded by their hash, as this server expects. With hf_xet
# the Hub takes chunks instead, and also skips those that it has.
LARGE = {"HF_TOKEN": RIGHT, "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def large(tmp_path) -> dict[str, bytes]:
    """The weights of `mine` by their hash; the last file is the largest."""
    (tmp_path / "mine").mkdir()
    made = {}
    for number in (1, 2, 3):
        content = os.urandom(number << 20)
        made[hashlib.sha256(content).hexdigest()] = content
        (tmp_path / "mine" / f"model-{number}.safetensors").write_bytes(content)
    return made


def committed(hub) -> set[tuple[str, str]]:
    """Return path and hash of each weight file in the only commit."""
    (commit,) = (lines for path, lines in hub.taken if "/commit/" in path)
    files = (line["value"] for line in commit if line["key"] == "lfsFile")
    return {(file["path"], file["oid"]) for file in files}


@pytest.mark.slow
def test_push_resumes_after_a_kill(tmp_path, hub, large):
    *_, last = large
    hub.cut = len(large[last])
    process = pushing(tmp_path, "me/mine", hub, **LARGE)
    assert hub.half.wait(60)
    while len(hub.large) < 2:  # the files are sent in parallel
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not any("/commit/" in path for path, _ in hub.taken)
    hub.cut = None
    lines = push(tmp_path, "me/mine", hub, **LARGE)
    assert lines[-1].startswith("pushed: http")
    assert hub.large == large
    assert sorted(hub.sent) == sorted(large), "a file was sent twice"
    paths = {(f"model-{n}.safetensors", oid) for n, oid in enumerate(large, 1)}
    assert committed(hub) == paths
    # A third push sends no weights, because all are on the server.
    hub.taken.clear()
    push(tmp_path, "me/mine", hub, **LARGE)
    assert len(hub.sent) == 3 and committed(hub) == paths


@pytest.mark.slow
def test_push_resumes_after_a_refusal(tmp_path, hub, large):
    *_, last = large
    hub.cut, hub.refused = len(large[last]), True
    line = push(tmp_path, "me/mine", hub, **LARGE)[-1]
    assert line.startswith(
        "PermissionError: mine is saved, but not pushed to me/mine: The Hub denied"
    )
    hub.cut = None
    assert push(tmp_path, "me/mine", hub, **LARGE)[-1].startswith("pushed: http")
    assert hub.large == large and committed(hub)
    assert sorted(hub.sent) == sorted(large)


def test_section_replaces_an_earlier_one_and_nothing_else(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Mine\n\nText.\n")
    cards.add_section(card, "Evaluation", "| a | b |")
    cards.add_section(card, "Trust", "kappa 0.1")
    cards.add_section(card, "Evaluation", "| c | d |")
    text = card.read_text()
    assert text.startswith("---\nlicense: mit\n---\n\n# Mine\n\nText.\n\n")
    assert text.count("## Evaluation") == text.count("## Trust") == 1
    assert "| a | b |" not in text and text.index("| c | d |") < text.index("kappa")
    cards.add_section(card, "Trust", "kappa 0.2")
    assert "kappa 0.1" not in card.read_text() and "| c | d |" in card.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_section_without_its_end_loses_no_text(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# Mine\n\n<!-- Trust -->\n## Trust\n\nold\n\nThe owner's text.\n")
    cards.add_section(card, "Trust", "new")
    assert "The owner's text." in card.read_text() and "new" in card.read_text()
    with pytest.raises(FileNotFoundError):
        cards.add_section(tmp_path / "missing.md", "Trust", "new")


def test_section_of_a_read_only_card_is_reported(tmp_path, capsys):
    """Linux lets nobody create a file in /sys, not even root."""
    card = Path("/sys/devices/system/cpu/online")
    if not card.is_file():
        pytest.skip("needs Linux's /sys")
    cards.add_section(card, "Trust", "kappa 0.1")
    assert "is read-only, so it gets no section 'Trust'" in capsys.readouterr().out
    (tmp_path / "README.md").write_text("# Mine")
    (tmp_path / "README.md.part").mkdir()
    with pytest.raises(IsADirectoryError):  # any other failure is raised
        cards.add_section(tmp_path / "README.md", "Trust", "kappa 0.1")
