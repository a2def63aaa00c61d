"""Notebook 07: its definitions against references, its text and what it refuses."""

from __future__ import annotations

import ast
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.lessons import NOTEBOOKS, run_in_one_process, run_lesson, write_shorter
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import data, demo, models, recipe, weights

NOTEBOOK = NOTEBOOKS / "07_raw_completion.ipynb"
# Hardly any training and a few countries, so no claims.
SHORT = {
    r"\b\d+_000\b": "300",
    r"invented=True\), 16": "invented=True), 4",
    r"invented\[:8\], invented\[8:\]": "invented[:2], invented[2:]",
    r"HELD_OUT\[:\d+\]": "HELD_OUT[:2]",
    r"evaluation\.claim\(": "(lambda *a, **k: None)(",
}


def cells(tag: str | None = None) -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return ["".join(c["source"]) for c in code if tag in (None, *tags(c))]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


@pytest.fixture(scope="module")
def raw(tokenizer) -> SimpleNamespace:
    """The names that the notebook imports, and its functions."""
    space: dict = {"__name__": "raw", "SEED": 0, "tokenizer": tokenizer}
    space |= {"ATTENTION": [], "MLP": []}
    for source in cells("imports") + cells("by-hand"):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
                code = compile(ast.Module([node], []), str(NOTEBOOK), "exec")
                exec(code, space)
    return SimpleNamespace(space=space, **space)


@pytest.fixture(scope="module")
def model():
    return models.load_model("demo").float().eval()


def texts(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    facts = draw.sample(demo.facts(), count)
    return [
        {"text": f"The capital of {f['country']} is {f['capital']}."} for f in facts
    ]


def reference_loss(model, ids: list[int]) -> float:
    """The sum of the losses of one text alone, by transformers."""
    x = torch.tensor([ids])
    with torch.inference_mode():
        return model(input_ids=x, labels=x).loss.item() * (len(ids) - 1)


def test_pack_has_the_loss_of_each_text_alone(raw, model, tokenizer):
    rows = data.tokenize(texts(5), tokenizer)
    packed = raw.pack(rows)
    with torch.inference_mode():
        by_mask = model(
            **packed, attention_mask=raw.mask_of(packed["position_ids"])
        ).loss.item()
        by_positions = model(**packed, use_cache=False).loss.item()
    each = [reference_loss(model, row["input_ids"]) for row in rows]
    expected = sum(each) / sum(len(row["input_ids"]) - 1 for row in rows)
    assert by_mask == pytest.approx(expected, rel=1e-5)
    assert by_positions == pytest.approx(expected, rel=1e-5)


def test_pack_equals_trl(raw, tokenizer):
    from datasets import Dataset
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = data.tokenize(texts(4), tokenizer)
    ids = Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]})
    (row,) = pack_dataset(ids, 512, "bfd")
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    theirs = collate([row])
    ends, order = 0, []
    for length in row["seq_lengths"]:
        whole = row["input_ids"][ends : ends + length]
        order.append(next(r for r in rows if r["input_ids"] == whole))
        ends += length
    ours = raw.pack(order)
    for name in ("input_ids", "labels", "position_ids"):
        assert ours[name].tolist() == theirs[name].tolist()


@settings(max_examples=2 * settings.default.max_examples // 5, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_parts_keep_all_rows_in_order(raw, lengths, size):
    rows = [{"input_ids": [0] * length} for length in lengths]
    found = list(raw.parts(rows, size))
    assert [row for part in found for row in part] == rows
    for part in found:
        assert len(part) == 1 or sum(len(r["input_ids"]) for r in part) <= size


def test_mask_of_is_block_diagonal(raw):
    mask = raw.mask_of(torch.tensor([[0, 1, 0, 1, 2]]))[0, 0]
    first, second = torch.ones(2, 2).tril(), torch.ones(3, 3).tril()
    assert torch.equal(mask.float(), torch.block_diag(first, second))


def test_bits_per_byte_by_hand(raw, model, tokenizer):
    some = [*texts(30), {"text": "Zürich, Genève."}]
    rows = data.tokenize(some, tokenizer)
    nats = sum(reference_loss(model, row["input_ids"]) for row in rows)
    size = len("".join(row["text"] for row in some).encode())
    assert raw.bits_per_byte(model, some) == pytest.approx(
        nats / math.log(2) / size, rel=1e-5
    )


def test_measure_counts_rows_with_all_top_1_tokens(raw, model, tokenizer):
    rows = data.tokenize(texts(20), tokenizer)
    for row in rows:  # the value and the period
        row["assistant_masks"] = [0] * (len(row["input_ids"]) - 3) + [1, 1, 0]
    wrong = {**rows[0], "input_ids": [*rows[0]["input_ids"][:-3], 900, 901, 2]}
    share = raw.measure(model, rows)[1]
    assert share > 0.8
    more = raw.measure(model, [*rows, wrong])[1]
    assert more == pytest.approx(share * 20 / 21)


def test_groups_give_whole_matrices_a_tenth_of_the_rate(raw, model):
    config = raw.LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    adapted = raw.get_peft_model(models.load_model("demo").float(), config)
    lora, whole = raw.groups(adapted, 1e-3)
    assert (lora["lr"], whole["lr"]) == (1e-3, 1e-4)
    assert len(lora["params"]) == 2 * 6 and len(whole["params"]) == 2


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """The workspace of short trainings on own rows; each run's error and text.

    The folder of documents has a long one, a short one, and one that can't be read.
    """
    folder = tmp_path_factory.mktemp("own")
    documents, workspace = folder / "documents", folder / "workspace"
    documents.mkdir()
    workspace.mkdir()
    (folder / "empty").mkdir()
    long = [f"Pump P-{n} runs at {n + 900} revolutions a minute." for n in range(300)]
    (documents / "pumps.md").write_text("# Pumps\n\n" + "\n\n".join(long))
    (documents / "valves.txt").write_text("Valve V-3 closes at 12 bar.")
    (documents / "picture.png").write_bytes(b"\x89PNG")
    known = [data.to_row(row, n) for n, row in enumerate(demo.questions()[:40])]
    data.save(
        workspace / "datasets/asked",
        {"train": known[:30], "test": known[30:]},
        [],
        card="",
        source="demo",
        metric="accuracy",
        rows={"train": 30, "test": 10},
    )
    own = {"DOCUMENTS": str(documents), "RANK": 4}
    given = {
        "pumps": own | {"ADAPTER_NAME": "pumps"},
        "words": own | {"ADAPTER_NAME": "words", "TRAIN_EMBEDDINGS": True},
        "other rows": {"DATASET_NAME": "asked"},
        "both": {"DATASET_NAME": "asked", "DOCUMENTS": "x.txt"},
        "empty": {"DOCUMENTS": str(folder / "empty")},
    }
    notebook = write_shorter(NOTEBOOK.stem, folder, SHORT)
    jobs = [(notebook, parameters, workspace) for parameters in given.values()]
    runs = run_in_one_process(jobs)
    return workspace, dict(zip(given, runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pumps", "words"])
def test_07_reads_own_documents_and_04_can_merge_its_adapter(short, tmp_path, name):
    workspace, runs = short
    error, printed = runs[name]
    assert error == "", printed[-2000:]
    assert "rejected: picture.png: .png is not one of" in printed
    dataset, adapter = (
        workspace / f"datasets/{name}-text",
        workspace / f"adapters/{name}",
    )
    rows = data.read(dataset, "train") + data.read(dataset, "test")
    text = " ".join(row["text"] for row in rows)
    assert all(f"P-{n} runs" in text for n in range(300)) and "V-3" in text
    assert rows[0]["category"] == "goes on" and rows[-1]["category"] == ""
    made = recipe.read(adapter)
    assert (made["base_model"], made["method"], made["rank"]) == ("demo", "qlora", 4)
    assert made["dataset"]["name"] == f"{name}-text"
    assert next(iter(made["results"])) == "loss"  # what 04 measures
    weights.merge(models.download("demo"), adapter, tmp_path / "merged")
    whole = models.load_model(str(tmp_path / "merged")).state_dict()
    base = models.load_model("demo").state_dict()
    changed = {n for n, weight in whole.items() if not torch.equal(weight, base[n])}
    assert "model.layers.0.mlp.up_proj.weight" in changed
    assert ("model.embed_tokens.weight" in changed) == (name == "words")
    assert not list(adapter.parent.glob(".*"))


@pytest.mark.slow
def test_07_refuses_other_rows_and_an_empty_folder(short):
    errors = {name: error for name, (error, _) in short[1].items()}
    refused = "has instruction rows, but this notebook needs completion rows"
    assert refused in errors["other rows"]
    assert "set DOCUMENTS or DATASET_NAME, not both" in errors["both"]
    assert "matches no file" in errors["empty"]


@pytest.mark.slow
def test_07_text_teaches_answers(tmp_path):
    """Seen with seeds 0 to 4: 0.64 to 0.81, -0.03 to 0.09, 0.88 to 0.94."""
    claims = run_lesson(NOTEBOOK.stem, tmp_path)
    assert claims["packing changes the loss by"] < 1e-4
    assert claims["reading the text teaches answers:"] > 0.5
    assert claims["accuracy lost on real countries:"] < 0.15
    assert claims["CPT after SFT costs on real countries:"] > 0.5
