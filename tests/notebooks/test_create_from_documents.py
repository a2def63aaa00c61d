"""Run 13_create_from_documents on the demo pages, and on documents with a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.chat_server import serve
from helpers.documents import write_docx, write_pdf

from colab_utils import data, recipe
from colab_utils.demo import stand_in
from tools.execute import run_notebook, use_this_interpreter

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "13_create_from_documents.ipynb"
KEY = "sk-SecretSecretSecretSecretSecret12"


def run(workspace: Path, monkeypatch, **parameters: object) -> str:
    """Execute the notebook; return all that its cells printed."""
    monkeypatch.setenv("WORKSPACE", str(workspace))
    monkeypatch.setenv("HEADLESS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    executed = workspace.parent / "executed.ipynb"
    with use_this_interpreter():
        result = run_notebook(NOTEBOOK, executed, parameters)
    assert result["failure"] is None
    cells = json.loads(executed.read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    return "".join("".join(out.get("text", "")) for out in outputs)


def pairs(folder: Path) -> list[tuple[str, str]]:
    rows = data.read(folder, "train") + data.read(folder, "test")
    return [(data.prompt_of(row), data.answer_of(row)) for row in rows]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The dataset of a run with the defaults, and what the run printed."""
    workspace = tmp_path_factory.mktemp("create") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        printed = run(workspace, patch)
    return workspace / "datasets" / "my-documents", printed


def test_demo_pages_become_true_rows(demo_run):
    folder, printed = demo_run
    made = recipe.read(folder)
    found = pairs(folder)
    assert len(found) == len(set(found)) == made["rows"]["kept"] >= 900  # seen: 981
    assert not any(stand_in.is_wrong(*pair) for pair in found)
    assert made["measured"]["chunks"] == 105
    assert made["measured"]["covered"] >= 0.9  # seen: 0.962
    # One answer in eight is planted: half of those come from the passage itself.
    assert 0.92 <= made["measured"]["grounded"] <= 0.98  # seen: 0.952
    assert "the judge found all 103 wrong answers, and no other" in printed
    assert made["source"] == "demo" and made["metric"] == "accuracy"


def test_demo_rows_are_split_by_page(demo_run):
    folder, _ = demo_run
    train, test = data.read(folder, "train"), data.read(folder, "test")
    assert not {row["group"] for row in train} & {row["group"] for row in test}
    assert len({row["group"] for row in train + test}) == 6


def test_demo_rejects_every_planted_failure(demo_run):
    folder, printed = demo_run
    rejected = data.read_jsonl(folder / "rejected.jsonl")
    reasons = " ".join(row["reason"] for row in rejected)
    for part in ("no JSON", "unchanged", "'Rewritten question'", "repeats line"):
        assert part in reasons
    assert f"{len(rejected)} texts rejected with their reasons" in printed


def test_own_documents_with_a_server(tmp_path, monkeypatch):
    """Four formats go through a server that fails at times; one file is a scan."""
    docs = tmp_path / "docs"
    docs.mkdir()
    stand_in.write_pages(docs)
    pages = sorted(docs.iterdir())
    text = pages[0].read_text()[:3000]
    write_docx(docs / "report.docx", text, [["a", "b"]], "End.")
    write_pdf(docs / "scan.pdf", [""])
    pages[1].unlink()
    monkeypatch.setenv("MY_KEY", KEY)
    with serve() as server:
        server.usual = lambda prompt: stand_in.rule([[{"content": prompt}]])[0]
        server.events = [(503, {}, ""), server.usual, (429, {"Retry-After": "0.1"}, "")]
        printed = run(
            tmp_path / "workspace",
            monkeypatch,
            DOCUMENTS=str(docs),
            GENERATOR=server.url,
            GENERATOR_MODEL="small",
            KEY_NAME="MY_KEY",
            PRICES="1, 2",
            PER_MINUTE=1e5,
            DATASET_NAME="mine",
        )
        assert {one["key"] for one in server.seen} == {f"Bearer {KEY}"}
        asked = len(server.seen)
    folder = tmp_path / "workspace" / "datasets" / "mine"
    assert "scan.pdf: its 1 pages have no text" in printed
    assert "6 documents, 1 rejected" in printed
    assert f"your text is sent to: {server.url}" in printed
    assert f"{asked:,} requests, 2 of them repeated" in printed and ", $0.0" in printed
    assert "report.docx" in {row["group"] for row in data.read(folder, "train")} | {
        row["group"] for row in data.read(folder, "test")
    }
    assert not any(stand_in.is_wrong(*pair) for pair in pairs(folder))
    made = recipe.read(folder)
    assert made["generator"] == {
        "generator": server.url,
        "model": "small",
        "url": server.url,
    }
    written = [path for path in folder.parent.rglob("*") if path.is_file()]
    for path in (tmp_path / "executed.ipynb", *written):
        assert KEY.encode() not in path.read_bytes(), path.name
