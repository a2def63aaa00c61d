"""CSV files, well-formed and broken, are read row by row."""

from __future__ import annotations

import csv
import io
import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from colab_utils.data.files import readers
from colab_utils.data.schema import Rejected

any_file = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read(folder, content: bytes | str, name: str = "a.csv") -> list:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(raw)
    return list(readers.read_file(folder / name))


def numbers(items: list) -> tuple[list[int], list[int]]:
    """Return the lines of the rows, and those of the rejected rows."""
    rejected = [item.line for item in items if isinstance(item, Rejected)]
    return [i[0] for i in items if not isinstance(i, Rejected)], rejected


def cells(items: list) -> list[list[str]]:
    return [list(i[1].values()) for i in items if not isinstance(i, Rejected)]


def as_csv(rows: list[list[str]], delimiter: str = ",", **options) -> str:
    out = io.StringIO()
    options = {"delimiter": delimiter, "lineterminator": "\n", **options}
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


TABLE = [["question", "answer"], ["Who?", "Me\nand 你"], ["1; 2", "x, y"]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (as_csv(TABLE), [2, 4]),
        (as_csv(TABLE, ";"), [2, 4]),
        (as_csv(TABLE, "\t"), [2, 4]),
        (as_csv(TABLE, "|"), [2, 4]),
        ("\ufeff\n" + as_csv(TABLE).replace('"x, y"', '"x, y"\n\n'), [3, 5]),
        ("sep=;\n" + as_csv(TABLE, ";"), [3, 5]),
        ('"sep=|"\r\n' + as_csv(TABLE, "|"), [3, 5]),
        (as_csv(TABLE, quoting=csv.QUOTE_ALL), [2, 4]),
        (as_csv(TABLE).replace('"x, y"', '"x, y",,'), [2, 4]),
    ],
)
def test_read_dialects(tmp_path, content, expected):
    items = read(tmp_path, content)
    assert cells(items) == TABLE[1:] and numbers(items) == (expected, [])


def test_read_line_ends(tmp_path):
    plain = [["q", "a"], ["1", "2"], ["3", "4"]]
    for end in ("\n", "\r\n", "\r"):
        items = read(tmp_path, as_csv(plain, lineterminator=end))
        assert items == [(2, {"q": "1", "a": "2"}), (3, {"q": "3", "a": "4"})]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_read_windows_text(tmp_path, capsys, mark):
    content = "question;answer\nWer?;Müller – “ja”\nWo?;10 €\nx;ascii\n"
    items = read(tmp_path, mark + content.encode("cp1252"))
    assert cells(items) == [["Wer?", "Müller – “ja”"], ["Wo?", "10 €"], ["x", "ascii"]]
    assert "read as cp1252 (Windows) (2 lines, the first is line 2)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "answer",
    [b"\xff", "Привет".encode("cp1251"), "你好".encode("gbk"), "é".encode() + b"\xe9"],
)
def test_read_other_encodings_become_lone_surrogates(tmp_path, answer):
    """They are not guessed: the schema rejects these rows."""
    (item,) = read(tmp_path, b"question,answer\na," + answer + b"\n")
    with pytest.raises(UnicodeEncodeError):
        item[1]["answer"].encode()


def test_read_damaged_utf8_is_not_taken_for_windows_text(tmp_path):
    first, second = read(tmp_path, "q,a\n1,é\n2,".encode() + b"\xe9\n")
    assert first[1]["a"] == "é" and second[1]["a"] == "\udce9"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_read_utf16(tmp_path, encoding):
    items = read(tmp_path, as_csv(TABLE).encode(encoding))
    assert cells(items) == TABLE[1:]


# --- quotes --------------------------------------------------------------------------


def table(count: int, columns: int = 2) -> list[str]:
    """Return lines of rows like those of a real file: some cells have quotes."""
    draw = random.Random(0)
    header = ",".join(["question", "answer", "source"][:columns])
    lines = [header]
    for number in range(count):
        row = [f"Which town lies {draw.randint(1, 999)} km from {number}?"]
        row += [f"The town number {number}.", "atlas"]
        lines.append(as_csv([row[:columns]]).rstrip("\n"))
    return lines


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("at", [1, 2, 30, 499])
def test_read_quote_that_is_never_closed(tmp_path, at, columns):
    lines = table(500, columns)
    lines.insert(at, '"never closed,b,c')
    items = read(tmp_path, "\n".join(lines))
    assert numbers(items)[1] == [at + 1] and len(items) == 501
    assert "a quote is opened and not closed in this row" in items[at - 1].reason


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize(("at", "to"), [(2, 480), (15, 60), (200, 210), (1, 501)])
def test_read_quote_that_a_later_row_closes(tmp_path, at, to, columns):
    """The rows between would be one cell: a valid row, or one with wrong fields."""
    lines = table(500, columns)
    lines.insert(at, '"Which town was never closed?' + ",b" * (columns - 1))
    lines.insert(to, 'The other one has a stray quote"' + ",b" * (columns - 1))
    items = read(tmp_path, "\n".join(lines))
    assert numbers(items)[1] == [at + 1]
    good = [row for row in cells(items) if "stray quote" not in row[0]]
    assert len(good) == 500 and max(map(len, map(str, good))) < 100


@pytest.mark.parametrize(
    "cell",
    [
        "name,age\n" + "\n".join(f"N{n},{n}" for n in range(40)),  # a table
        "{\n" + "\n".join(f"  key_{n}: {n}," for n in range(40)) + "\n}",
        "\n".join(["Roses are red, violets are blue"] * 4),
        "a\n\n\nb",
        'He said "no",\nthen "yes"',
    ],
)
def test_read_keeps_cells_of_several_lines(tmp_path, cell):
    rows = [[f"Which town is number {n}?", f"The town of {n}."] for n in range(30)]
    rows[20:20] = [["What is this?", cell], [cell, "A cell."]]
    content = as_csv([["question", "answer"], *rows])
    assert cells(read(tmp_path, content)) == rows


def test_read_names_a_row_of_many_lines(tmp_path, capsys):
    rows = [["q", "a"], ["text", "word\n" * 150], ["x", "y"]]
    assert cells(read(tmp_path, as_csv(rows))) == rows[1:]
    assert (
        "rows have more than 100 lines; is a quote missing there? (1 line, the fi"
        in (capsys.readouterr().out)
    )


def test_read_quotes_escaped_with_a_backslash(tmp_path):
    content = 'q,a\n"He said \\"hi\\", then left",b\n"two\\"\nlines",c\nlast,d\n'
    items = read(tmp_path, content)
    expected = [['He said "hi", then left', "b"], ['two"\nlines', "c"], ["last", "d"]]
    assert cells(items) == expected and numbers(items) == ([2, 3, 5], [])


def test_read_tsv_has_no_quotes(tmp_path):
    items = read(tmp_path, 'q\ta\n"Hi," she said.\tb\n"open\td\n', "a.tsv")
    assert cells(items) == [['"Hi," she said.', "b"], ['"open', "d"]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("one", "1 fields, the header has 2"),
        ("a,b,c", "3 fields, the header has 2"),
        ('"never closed,b', "not CSV: "),
        ('"closed" early,b', "not CSV: "),
    ],
)
def test_read_rejects_only_the_broken_row(tmp_path, bad, reason):
    content = f'question,answer\na,b\n{bad}\n"two\nlines",d\nlast,"one"\n'
    found = read(tmp_path, content)
    rejected = found.pop(1)
    assert rejected.line == 3 and rejected.reason.startswith(reason)
    assert numbers(found) == ([2, 4, 6], [])
    assert [row["question"] for _, row in found] == ["a", "two\nlines", "last"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b,a\n1,2,3\n", "two columns of the same name: a"),
        ('"a,b\n1,2\n', "a.csv can't be read"),
    ],
)
def test_read_refuses_a_broken_header(tmp_path, content, sentence):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, content)
    assert sentence in str(caught.value)


# --- anything ------------------------------------------------------------------------

# Python 3.10's csv refuses NUL.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(texts, texts)),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
)
@example([("a", "b\r")], ",", csv.QUOTE_ALL, "\n")
@any_file
def test_read_well_formed_equals_csv(tmp_path, rows, delimiter, quoting, end):
    options = {"quoting": quoting, "lineterminator": end}
    # Python's csv module writes a carriage return without quotes.
    spare = "" if quoting == csv.QUOTE_MINIMAL else "\r"
    rows = [[cell.replace("\r", spare) for cell in row] for row in rows]
    rows = [["question", "answer"], *rows]
    content = as_csv(rows, delimiter, **options)
    found = read(tmp_path, content)
    expected = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    blank = [row for row in expected[1:] if len(row) == 2]
    assert cells(found) == blank and numbers(found)[1] == []


PIECES = [b"question,answer", b"a,b", b"x", b'"', b'""', b",", b";", b"\t", b"\\"]
PIECES += [b"\n", b"\n", b"\r\n", b"\r", b" ", b"\0", b"\xff", b"\xe9", b"\xe2\x80\xa8"]
PIECES += [b"\xef\xbb\xbf", b"sep=;", b"\xff\xfe"]
anything = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet", "a.arrow"])
@settings(any_file, max_examples=150)
@given(content=anything)
def test_read_any_bytes_raise_only_value_error(tmp_path, name, content):
    try:
        found = read(tmp_path, content, name)
    except ValueError:
        return
    lines = [i.line if isinstance(i, Rejected) else i[0] for i in found]
    assert lines == sorted(lines)
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason.isascii() and item.start.isascii()


BAD = [
    '"never closed,b',
    "one",
    "a,b,c",
    '"closed" early,b',
    "\x01",
    '"\udcff,x',
]
BAD += ['a,"b" c', "a;b"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_read_ten_thousand_rows_with_broken_ones(tmp_path, seed):
    """No good row is lost, and each bad line is rejected with its number."""
    draw = random.Random(seed)
    lines, good, bad = ["question,answer"], [], []
    for number in range(10_000):
        if draw.random() < 0.1:
            bad.append(len(lines) + 1)
            lines.append(draw.choice(BAD))
            continue
        cell = draw.choice(
            ["plain {}", '"a, {}"', '"say ""{}"""', '"two\r\n{}"', "é {}"]
        )
        good.append(cell.format(number).strip('"').replace('""', '"'))
        lines += f"question {number},{cell.format(number)}".split("\n")
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    items = read(tmp_path, content)
    found = [row[1].strip('"') for row in cells(items) if row[0].startswith("question")]
    assert found == [text.strip('"') for text in good]
    assert numbers(items)[1] == bad
