"""The canonical form of a notebook: found by `check`, written by `format`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from helpers.notebook_project import NAME, code, save, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import notebooks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (lambda nb: nb.cells[7].update(execution_count=3), ":8: not canonical"),
        (lambda nb: nb.cells[7].metadata.update(outputId="x"), ":8: not canonical"),
        (lambda nb: nb.cells[7].update(source="print( 1 )"), ":8: not canonical"),
        (lambda nb: nb.metadata.update(widgets={}), "not asking for a T4"),
        (lambda nb: nb.metadata.pop("accelerator"), "not asking for a T4"),
        (lambda nb: nb.metadata.colab.update(gpuType="A100"), "not asking for a T4"),
        (lambda nb: nb.cells.append(code("")), "has empty cells"),
    ],
)
def test_format_repairs_what_check_finds(
    project: Path, mutate: Callable, expected: str
) -> None:
    nb = nbformat.read(project / "notebooks" / NAME, as_version=4)
    mutate(nb)
    save(project, nb)
    (problem,) = notebooks.check(project)
    assert expected in problem
    assert problem.endswith("fix: make format")
    assert tool(project, "format") == 0
    assert notebooks.check(project) == []


def test_a_notebook_without_gpu_does_not_ask_for_one(project: Path) -> None:
    (project / "notebooks" / NAME).rename(project / "notebooks/01_create_dataset.ipynb")
    found = " ".join(notebooks.check(project))
    assert (
        "01_create_dataset.ipynb: metadata not canonical, or asking for a GPU" in found
    )
    tool(project, "format")
    path = project / "notebooks/01_create_dataset.ipynb"
    metadata = json.loads(path.read_text())["metadata"]
    assert "accelerator" not in metadata and "gpuType" not in metadata["colab"]
    assert not metadata["kaggle"]["isGpuEnabled"]


def test_a_notebook_for_several_gpus_asks_kaggle_only(project: Path) -> None:
    path = project / "notebooks/17_large_models.ipynb"
    (project / "notebooks" / NAME).rename(path)
    assert "or asking for a GPU" in " ".join(notebooks.check(project))
    tool(project, "format")
    metadata = json.loads(path.read_text())["metadata"]
    assert "accelerator" not in metadata and "gpuType" not in metadata["colab"]
    assert metadata["kaggle"]["accelerator"] == "nvidiaTeslaT4"


def test_check_finds_json_layout(project: Path) -> None:
    path = project / "notebooks" / NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert "JSON not laid out" in notebooks.check(project)[0]


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n{}", "[]", '{"nbformat": 3}', "\xff"])
def test_broken_file_is_named(project: Path, text: str) -> None:
    (project / "notebooks" / NAME).write_bytes(text.encode("latin-1"))
    (problem,) = notebooks.check(project)
    assert problem.startswith(f"notebooks/{NAME}: not a notebook")
    assert tool(project, "format") == 1


def test_format_leaves_code_that_does_not_parse(project: Path, capsys) -> None:
    path = project / "notebooks" / NAME
    nb = nbformat.read(path, as_version=4)
    nb.cells[7].source = "print("
    save(project, nb)
    before = path.read_bytes()
    assert tool(project, "format") == 1
    assert "fix: correct the cell" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_format_keeps_ids_of_notebook_saved_by_colab(project: Path) -> None:
    path = project / "notebooks" / NAME
    before = path.read_bytes()
    nb = json.loads(before)
    nb["nbformat_minor"] = 0
    nb["metadata"]["colab"] |= {"name": NAME, "include_colab_link": True}
    for number, cell in enumerate(nb["cells"]):
        cell["metadata"] |= {"id": cell.pop("id"), "colab": {"base_uri": "x"}}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "a"}]
    link = {"id": "view-in-github", "colab_type": "text"}
    badge = {"cell_type": "markdown", "metadata": link, "source": ["<a>badge</a>"]}
    nb["cells"].insert(0, badge)
    path.write_text(json.dumps(nb))
    assert tool(project, "format") == 0
    assert path.read_bytes() == before


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
    ),
    max_leaves=5,
)
METADATA = st.dictionaries(
    st.sampled_from(["id", "outputId", "papermill", "execution", "widgets", "colab"]),
    JSON,
)
IDS = st.sampled_from(["a", "b", "c-1", "", "no spaces", None, 7]) | TEXT
SOURCE = st.sampled_from(["x = { 1 : 2 }", "%%time\nf( 1 )", "!ls", "'ü'\n\n", "a;b"])
CODE = st.fixed_dictionaries(
    {
        "cell_type": st.just("code"),
        "id": IDS,
        "execution_count": st.integers(0, 9),
        "metadata": METADATA,
        "outputs": st.lists(JSON, max_size=2),
        "source": SOURCE | SOURCE.map(lambda text: text.splitlines(True)),
    }
)
PROSE = st.fixed_dictionaries(
    {
        "cell_type": st.sampled_from(["markdown", "raw"]),
        "metadata": METADATA,
        "source": TEXT,
    },
    optional={"id": IDS},
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cells=st.lists(CODE | PROSE, max_size=6), metadata=METADATA)
def test_format_removes_outputs_and_metadata(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict], metadata: dict
) -> None:
    root = tmp_path_factory.mktemp("junk")
    (root / "notebooks").mkdir()
    path = root / "notebooks" / NAME
    nb = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb), encoding="utf-8")
    assert tool(root, "format") == 0
    text = path.read_text(encoding="utf-8")
    result = nbformat.reads(text, as_version=4)
    nbformat.validate(result)
    assert text == nbformat.writes(result) + "\n"
    assert result.metadata == notebooks.NOTEBOOK_METADATA
    for cell in result.cells:
        assert set(cell.metadata) <= {"tags", "cellView"}
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    ids = [cell.id for cell in result.cells]
    assert len(set(ids)) == len(ids)
    kept = [cell for cell in cells if "".join(cell["source"]).strip()]
    own = {i for i in ("a", "b", "c-1") if any(c.get("id") == i for c in kept)}
    if not any(c["metadata"].get("id") == "view-in-github" for c in cells):
        assert own <= set(ids)
    assert tool(root, "format") == 0
    assert path.read_text(encoding="utf-8") == text
