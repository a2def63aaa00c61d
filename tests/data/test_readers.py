"""Datasets are found and read, from files of every type and from the Hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils.data.files import cells, readers, sources
from colab_utils.data.schema import Rejected

ROWS = [{"question": "Who?", "answer": "Me\nand 你"}, {"question": "1", "answer": "x"}]
GOOD = '{"question": "a", "answer": "b"}'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def rows(items: object) -> list:
    return [item[1] for item in items if not isinstance(item, Rejected)]


# --- compressed files ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
def test_read_compressed_equals_plain(tmp_path, suffix):
    # Two parts in one file, as `cat a.gz b.gz` writes them.
    content = COMPRESS[suffix](JSONL) + COMPRESS[suffix](JSONL)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    expected = list(enumerate(ROWS * 2, start=1))
    assert list(readers.read_file(path)) == expected
    # The bytes decide: a name may say nothing of the compression, or too much.
    (tmp_path / "a.jsonl").write_bytes(content)
    assert list(readers.read_file(tmp_path / "a.jsonl")) == expected
    path.write_bytes(JSONL * 2)
    assert list(readers.read_file(path)) == expected


@given(st.binary(max_size=300), st.sampled_from(list(COMPRESS)))
@settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_read_compressed_bytes_equal_plain_bytes(tmp_path, content, suffix):
    content = b'{"a": 1}\n' + content
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / f"b.jsonl{suffix}").write_bytes(COMPRESS[suffix](content))
    archive(tmp_path / "c.zip", {"a.jsonl": content})
    plain = list(map(repr, readers.read_file(tmp_path / "a.jsonl")))
    for name in (f"b.jsonl{suffix}", "c.zip"):
        assert list(map(repr, readers.read_file(tmp_path / name))) == plain


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_read_keeps_the_rows_before_damage(tmp_path, suffix, share):
    draw = random.Random(0)
    lines = [json.dumps({"n": n, "a": draw.random()}) for n in range(12_000)]
    whole = COMPRESS[suffix]("\n".join(lines).encode())
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    *items, last = readers.read_file(path)
    assert last.reason.startswith("the file can't be read further: ")
    found = rows(items)
    assert found == [json.loads(line) for line in lines[: len(found)]]
    # bzip2 has blocks of 900 kB: all of a small file is one.
    assert last.line > len(found) and (suffix == ".bz2" or len(found) > 1000)


def test_read_parquet_in_a_zip_file(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    archive(tmp_path / "a.zip", {"x/a.parquet": (tmp_path / "a.parquet").read_bytes()})
    assert rows(readers.read(str(tmp_path / "a.zip"))) == ROWS


def test_read_zip_file_with_one_or_several_data_files(tmp_path):
    other = {"README.md": b"Hello", "__MACOSX/a.jsonl": b"x", "x/train.jsonl": JSONL}
    path = archive(tmp_path / "a.zip", other)
    assert rows(readers.read(str(path))) == ROWS

    path = archive(tmp_path / "b.zip", other | {"y/test.csv": b"q,a\n1,2\n"})
    with pytest.raises(ValueError) as caught:
        readers.read(str(path))
    assert f"{path} has 2 data files: x/train.jsonl, y/test.csv." in str(caught.value)
    assert f"as in {path}/x/train.jsonl." in str(caught.value)
    assert rows(readers.read(f"{path}/x/train.jsonl")) == ROWS
    assert rows(readers.read(f"{path}/y/test.csv")) == [{"q": "1", "a": "2"}]
    with pytest.raises(
        FileNotFoundError, match=r"has no dev. It has: x/train.jsonl, y/t"
    ):
        readers.read(f"{path}/dev")

    path = archive(tmp_path / "c.zip", {"README.md": b"Hello"})
    with pytest.raises(ValueError, match="has no data file in it"):
        readers.read(str(path))
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="can't be read as a zip file"):
        readers.read(str(path))


# --- several files and parts ---------------------------------------------------------


def test_read_pattern_numbers_the_lines_on(tmp_path, monkeypatch, capsys):
    """Line 5 is line 5 of `cat data/*`, and the output says whose line it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.jsonl.gz").write_bytes(gzip.compress(b"x\n" + JSONL))
    (tmp_path / "data" / "a.jsonl").write_bytes(JSONL + b"\n" + JSONL.rstrip())
    (tmp_path / "data" / "c.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "data" / "d.csv").write_text("question,answer\nq,a\n")
    items = list(readers.read("data/*"))
    lines = [item.line if isinstance(item, Rejected) else item[0] for item in items]
    assert lines == [1, 2, 4, 5, 6, 7, 8, 10, 14, 20] and isinstance(items[4], Rejected)
    assert capsys.readouterr().out.splitlines() == [
        "data/a.jsonl: lines 1 to 5",
        "data/b.jsonl.gz: lines 6 to 8",
        "data/c.json: lines 9 to 18",
        "data/d.csv: lines 19 to 20",
    ]
    assert [path.name for path in readers.files("data/*.json*")] == [
        "a.jsonl",
        "b.jsonl.gz",
        "c.json",
    ]


def test_read_pattern_without_a_match(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No file matches data/\*\.jsonl"):
        readers.read("data/*.jsonl")
    (tmp_path / "a[1].jsonl").write_bytes(JSONL)  # a browser's second download
    assert rows(readers.read("a[1].jsonl")) == ROWS


def test_read_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="data is a folder without data files"):
        readers.read("data")
    (tmp_path / "data" / "README.md").write_text("x")
    (tmp_path / "data" / "a.jsonl.gz").write_bytes(gzip.compress(JSONL))
    assert rows(readers.read("data")) == ROWS
    (tmp_path / "data" / "b.jsonl.gz").write_bytes(gzip.compress(JSONL))
    with pytest.raises(
        ValueError, match=r"2 data files: a.*pattern: data/\*\.jsonl.gz"
    ):
        readers.read("data")


def test_read_part_of_a_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert rows(readers.read(f"{path}/test")) == ROWS[:1]
    archive(tmp_path / "a.zip", {"a.json": path.read_bytes()})
    for part in ("a.json/test", "test"):
        assert rows(readers.read(f"{tmp_path}/a.zip/{part}")) == ROWS[:1]
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(ValueError, match="is one file of rows, so it has no part test"):
        readers.read(f"{tmp_path}/a.csv/test")


# --- Parquet and Arrow ---------------------------------------------------------------


def test_read_parquet(tmp_path):
    many = ROWS * 800
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "a.parquet")
    found = list(readers.read_file(tmp_path / "a.parquet"))
    assert found == list(enumerate(many, start=1))


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_read_arrow(tmp_path, writer):
    table = pa.Table.from_pylist(ROWS * 800)
    with writer(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    found = list(readers.read_file(tmp_path / "a.arrow"))
    assert found == list(enumerate(ROWS * 800, start=1))


def test_read_rejects_parquet_text_that_is_not_utf8(tmp_path):
    text = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    pq.write_table(pa.table({"question": text}), tmp_path / "a.parquet")
    first, second, third = readers.read_file(tmp_path / "a.parquet")
    assert (first, third) == ((1, {"question": "one"}), (3, {"question": "three"}))
    assert second.line == 2 and "utf-8" in second.reason


# --- what can't be read, with the sentence that helps --------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.parquet", b"PAR1 but no", "a.parquet can't be read as Parquet"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "not data but a web page"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1", "Run git lfs pull"),
        ("a.txt", b"x", "a document without rows"),
        ("a.xlsx", b"PK\x03\x04", "save the sheet as CSV"),
        ("a.tar.gz", b"\x1f\x8b", "unpack it"),
        ("a.pkl", b"\x80", "save it as Parquet or JSON Lines"),
        ("a.yaml", b"- a: 1", "convert it to JSON Lines"),
        ("a.gz", b"\x1f\x8b", "rename it, as in data.jsonl.gz"),
        ("a.strange", b"x", r"unknown file type; use one of .jsonl"),
    ],
)
def test_read_refuses(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        list(readers.read_file(tmp_path / name))
    assert sentence in str(caught.value) and name in str(caught.value)


def test_find_tells_files_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text(GOOD)
    assert sources.find("data/mine.jsonl") == [sources.Source(Path("data/mine.jsonl"))]
    hub = ["databricks/databricks-dolly-15k", "a/b.v2", "a/b:main", "a/b:main:test"]
    page = "https://huggingface.co/datasets/a/b"
    for name in [*hub, "a/b::test", page, f"{page}/viewer/main"]:
        assert sources.find(name) is None
    with pytest.raises(FileNotFoundError, match=r"!wget https://a\.org/b\.jsonl"):
        sources.find("https://a.org/b.jsonl")


@pytest.mark.parametrize("source", ["data/my.jsonl", "data/my.gz", "no/such.csv", "x"])
def test_find_missing_names_folder_and_its_files(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl.gz").write_text(GOOD)
    with pytest.raises(FileNotFoundError) as caught:
        sources.find(source)
    assert f"no file {source} (looked in {tmp_path})" in str(caught.value)
    assert ("data has: mine.jsonl.gz." in str(caught.value)) == source.startswith(
        "data"
    )
    assert "databricks/databricks-dolly-15k" in str(caught.value)


# --- memory --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz", ".parquet"])
def test_read_needs_little_memory(tmp_path, suffix):
    """A file of 20 MB is read in pieces, and the first row comes at once."""
    path, text = tmp_path / f"a{suffix}", "word " * 400
    many = [{"question": str(n), "answer": text} for n in range(10_000)]
    if suffix == ".parquet":
        table = pa.Table.from_pylist(many)
        pq.write_table(table, path, compression="none", row_group_size=1000)
    elif suffix == ".csv":
        path.write_text(
            "question,answer\n" + "".join(f"{n},{text}\n" for n in range(10_000))
        )
    elif suffix == ".json":
        path.write_text(json.dumps(many))
    else:
        content = "".join(json.dumps(row) + "\n" for row in many).encode()
        path.write_bytes(gzip.compress(content) if "gz" in suffix else content)
    del many
    items = readers.read_file(path)
    tracemalloc.start()
    try:
        assert next(items)[1]["question"] == "0"
        assert sum(1 for _ in items) == 9_999
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


# --- cells ---------------------------------------------------------------------------

TURNS = [
    {"role": "user", "content": 'It\'s "q"'},
    {"role": "assistant", "content": "a"},
]


@pytest.mark.parametrize("write", [json.dumps, repr, lambda v: f" {json.dumps(v)}\n"])
def test_decode_lists_in_cells(write):
    for name in ("messages", "conversations", "Messages", "prompt", "chosen"):
        assert cells.decode({name: write(TURNS), "n": "1"}) == {name: TURNS, "n": "1"}
    tool = {"type": "function"}
    assert cells.decode({"tools": write([tool])}) == {"tools": [tool]}
    assert cells.decode({"tools": write(tool)}) == {"tools": tool}


@pytest.mark.parametrize(
    "cell",
    ["[1, 2] sort this", '["a"]', "[]", "{", '[{"a": 1}]', "[" * 100_000, "", None, 1],
)
def test_decode_leaves_other_cells(cell):
    for name in ("prompt", "messages", "tools"):
        raw = {name: cell}
        if name != "tools" or cell != '[{"a": 1}]':
            assert cells.decode(raw) is raw
    raw = {"answer": json.dumps(TURNS)}
    assert cells.decode(raw) is raw


# --- datasets of the Hub, simulated by a local folder --------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "some" / "one"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(JSONL)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: main, data_files: [{split: train, path: train.jsonl}]}\n"
        "- {config_name: held, data_files: [{split: test, path: train.jsonl}]}\n---\n"
    )
    monkeypatch.chdir(tmp_path / "hub")


def test_read_hub_with_config_and_split(repository):
    for name in ("some/one:main", "some/one:main:train", "some/one:held:test"):
        assert list(readers.read_hub(name)) == list(enumerate(ROWS, start=1))


def test_read_hub_gives_labels_their_names(repository):
    Path("some/one/train.jsonl").write_text(
        '{"text": "Buy!", "label": 1}\n{"text": "Hi.", "label": 0}\n'
        '{"text": "Held back.", "label": -1}\n{"text": "Lost.", "label": null}\n'
    )
    card = Path("some/one/README.md")
    names = "{class_label: {names: {'0': ham, '1': spam}}}"
    features = f"[{{name: text, dtype: string}}, {{name: label, dtype: {names}}}]"
    info = f"dataset_info: [{{config_name: main, features: {features}}}]\n---\n"
    head = card.read_text().removesuffix("---\n")
    card.write_text(head + info)
    rows = [row for _, row in readers.read_hub("some/one:main")]
    assert [row["label"] for row in rows] == ["spam", "ham", None, None]


@pytest.mark.parametrize("name", ["some/one", "some/one:held", "some/one:other"])
def test_read_hub_missing_config_or_split(repository, name):
    with pytest.raises(ValueError) as caught:
        readers.read_hub(name)
    assert f"{name} can't be loaded" in str(caught.value)
    assert "as in openai/gsm8k:main" in str(caught.value)
    config = name.partition(":")[2]
    assert f"as in some/one:{config}:test." in str(caught.value)
