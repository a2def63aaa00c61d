"""Files of every type, intact and broken, are read row by row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils.data import readers, sources
from colab_utils.data.readers import Rejected

ROWS = [{"question": "Who?", "answer": "Me\nand 你"}, {"question": "1", "answer": "x"}]

any_file = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Parts of the formats, which the tests combine at random.
PIECES = [
    *(
        b'{"question": "a", "answer": "b"}',
        b"question,answer",
        b"a,b",
        b"NaN",
        b"\\ud8",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b'""',
        b",",
        b";",
        b"\t",
        b":",
        b"'",
        b"\\",
        b"1e9",
    ),
    *(
        b"\n",
        b"\n",
        b"\r\n",
        b"\r",
        b" ",
        b"\0",
        b"\xff",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
    ),
]
broken = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join)


def read(path: Path, content: bytes | str) -> list:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(readers.read_file(path))


def as_csv(rows: list[list[str]], delimiter: str = ",", **options) -> str:
    out = io.StringIO()
    options |= {"delimiter": delimiter, "lineterminator": "\n"}
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


# --- every format --------------------------------------------------------------------

TABLE = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("a.jsonl", "\ufeff" + "\r\n\r\n".join(map(json.dumps, ROWS)), [1, 3]),
        ("a.json", json.dumps(ROWS), [1, 1]),
        ("a.JSON", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.json", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("a.csv", as_csv(TABLE), [2, 4]),
        ("a.csv", "\ufeff\n" + as_csv(TABLE, ";").replace("\n1;", "\n\n1;"), [3, 6]),
        ("a.csv", as_csv(TABLE, "\t"), [2, 4]),
        ("a.tsv", as_csv(TABLE, "\t"), [2, 4]),
    ],
)
def test_read_file_text_formats(tmp_path, name, content, lines):
    found = read(tmp_path / name, content)
    assert found == list(zip(lines, ROWS, strict=True))


def test_read_file_parquet(tmp_path):
    rows = ROWS * 800
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(readers.read_file(tmp_path / "a.parquet"))
    assert found == list(enumerate(rows, start=1))


def test_read_file_json_of_one_object_is_one_row(tmp_path):
    content = json.dumps({"data": ROWS}, indent=1)
    assert read(tmp_path / "a.json", content) == [(1, {"data": ROWS})]


# Python 3.10's csv refuses NUL.
cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(st.tuples(cells, cells)))
@any_file
def test_read_file_csv_round_trip(tmp_path, rows):
    table = [["question", "answer"], *map(list, rows)]
    found = read(tmp_path / "a.csv", as_csv(table, quoting=csv.QUOTE_ALL))
    assert [list(row.values()) for _, row in found] == table[1:]


# --- broken rows ---------------------------------------------------------------------


@pytest.mark.slow
@given(broken)
@any_file
def test_read_file_any_bytes_as_json_lines(tmp_path, content):
    try:
        found = read(tmp_path / "a.jsonl", content)
    except ValueError as error:
        assert "UTF-16" in str(error)
        return
    text = content.decode("utf-8-sig", "surrogateescape")
    lines = [n for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    assert [i.line if isinstance(i, Rejected) else i[0] for i in found] == lines
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason.startswith("not JSON: ") and item.start.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv", "a.parquet"])
@given(content=broken)
@any_file
def test_read_file_any_bytes_raise_only_value_error(tmp_path, name, content):
    try:
        found = read(tmp_path / name, content)
    except ValueError:
        return
    lines = [i.line if isinstance(i, Rejected) else i[0] for i in found]
    assert lines == sorted(lines)
    if name.endswith("sv"):  # no line is read twice
        assert len(set(lines)) == len(lines) <= len(content.splitlines())


GOOD = '{"question": "a", "answer": "b"}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON: Expecting"),
        (GOOD[:-1], "not JSON: Expecting"),
        ("[" * 200_000, "not JSON: nested too deeply"),
        ("9" * 5000, "not JSON: Exceeds the limit"),
    ],
)
def test_read_file_rejects_only_the_broken_json_line(tmp_path, bad, reason):
    first, second, third = read(tmp_path / "a.jsonl", f"{GOOD}\n{bad}\n{GOOD}\n")
    assert (first[0], third[0]) == (1, 3) and first[1] == third[1] == json.loads(GOOD)
    assert second.line == 2 and second.reason.startswith(reason)
    assert second.start == bad[:200]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("one", "1 fields, the header has 2"),
        ("a,b,c", "3 fields, the header has 2"),
        ('"never closed,b', "not CSV: "),
        ('"closed" early,b', "not CSV: "),
    ],
)
def test_read_file_rejects_only_the_broken_csv_row(tmp_path, bad, reason):
    content = f'question,answer\na,b\n{bad}\n"two\nlines",d\nlast,"one"\n'
    found = read(tmp_path / "a.csv", content)
    rejected = found.pop(1)
    assert rejected.line == 3 and rejected.reason.startswith(reason)
    assert [line for line, _ in found] == [2, 4, 6]
    assert [row["question"] for _, row in found] == ["a", "two\nlines", "last"]


def test_read_file_rejects_parquet_text_that_is_not_utf8(tmp_path):
    text = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    pq.write_table(pa.table({"question": text}), tmp_path / "a.parquet")
    first, second, third = readers.read_file(tmp_path / "a.parquet")
    assert (first, third) == ((1, {"question": "one"}), (3, {"question": "three"}))
    assert second.line == 2 and "utf-8" in second.reason


# --- files that can't be read as a whole ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", '[{"a": 1}, {"a"', "row that begins on line 1 can't be read"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "no comma or ] after the row"),
        ("a.json", '[{"a": 1}', "Is the file complete?"),
        ("a.json", '[{"a": 1}]\n[{"a": 2}]', "there is text after the list"),
        ("a.csv", "a,b,a\n1,2,3\n", "two columns of the same name: a"),
        ("a.csv", '"a,b\n1,2\n', "The header of a.csv can't be read"),
        ("a.jsonl", GOOD.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("a.parquet", b"PAR1 but no", "a.parquet can't be read as Parquet"),
    ],
)
def test_read_file_refuses_broken_files(tmp_path, name, content, sentence):
    with pytest.raises(ValueError) as caught:
        read(tmp_path / name, content)
    assert sentence in str(caught.value)


def test_local_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("x")
    assert sources.find("data/mine.jsonl") == Path("data/mine.jsonl")
    for hub in ("databricks/databricks-dolly-15k", "a/b.v2", "openai/gsm8k:main"):
        assert sources.find(hub) is None
    for folder in ("data", "."):
        with pytest.raises(ValueError, match="is a folder"):
            sources.find(folder)
    with pytest.raises(ValueError, match=r"notes.txt: unknown file type.*\.parquet"):
        sources.find("notes.txt")


@pytest.mark.parametrize("source", ["data/my.jsonl", "data/my.txt", "no/such.csv", "x"])
def test_local_file_missing_names_folder_and_its_files(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.jsonl").write_text(GOOD)
    with pytest.raises(FileNotFoundError) as caught:
        sources.find(source)
    assert f"no file {source} (looked in {tmp_path})" in str(caught.value)
    assert ("data has: mine.jsonl." in str(caught.value)) == source.startswith("data/")
    assert "databricks/databricks-dolly-15k" in str(caught.value)


# --- datasets of the Hub, simulated by a local folder --------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "some" / "one"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: main, data_files: [{split: train, path: train.jsonl}]}\n"
        "- {config_name: held, data_files: [{split: test, path: train.jsonl}]}\n---\n"
    )


def test_read_hub_with_config(repository):
    assert list(readers.read_hub("some/one:main")) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("name", ["some/one", "some/one:held", "some/one:other"])
def test_read_hub_missing_config_or_split(repository, name):
    with pytest.raises(ValueError) as caught:
        readers.read_hub(name)
    assert f"{name} can't be loaded" in str(caught.value)
    assert "as in openai/gsm8k:main" in str(caught.value)
