"""JSON files of every shape, intact and broken, are read row by row."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colab_utils.data.files import json_files, json_lists, readers
from colab_utils.data.files.streams import Notes, Stream, Text
from colab_utils.data.schema import Rejected

ROWS = [{"question": "Who?", "answer": "Me\nand 你"}, {"question": "1", "answer": "x"}]
GOOD = '{"question": "a", "answer": "b"}'

any_file = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read(content: bytes | str, key: str = "") -> list:
    """Read the content of a JSON file."""
    raw = content if isinstance(content, bytes) else content.encode()

    def reopen() -> Text:
        return Text(Stream(io.BytesIO(raw)), Notes("a.json"))

    return list(json_files.read(reopen, key))


def numbers(items: list) -> tuple[list[int], list[int]]:
    """Return the lines of the rows, and those of the rejected rows."""
    rejected = [item.line for item in items if isinstance(item, Rejected)]
    return [i[0] for i in items if not isinstance(i, Rejected)], rejected


def rows(items: list) -> list:
    return [item[1] for item in items if not isinstance(item, Rejected)]


def lines(*values: object, **options) -> str:
    return "\n".join(json.dumps(value, **options) for value in values)


# --- shapes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lines(*ROWS), [1, 2]),
        (lines(*ROWS, ensure_ascii=False), [1, 2]),
        ("\ufeff" + lines(*ROWS).replace("\n", "\r\n\r\n") + "\r\n", [1, 3]),
        (lines(*ROWS).replace("\n", "\r"), [1, 1]),
        (lines(*ROWS).replace("\n", ""), [1, 1]),
        (lines(*ROWS).replace("\n", ",\n") + ",", [1, 2]),
        (lines(*ROWS, indent=2), [1, 5]),
        (lines(*ROWS, indent=2).replace("}\n{", "},\n\n{"), [1, 6]),
        (lines(*ROWS, indent=2).replace("}\n{", "}{"), [1, 4]),
        (lines(ROWS), [1, 1]),
        (lines(ROWS, indent=1), [2, 6]),
        (lines(ROWS[:1], ROWS[1:]), [1, 2]),
        (lines(ROWS[:1], ROWS[1]), [1, 2]),
        ("\n" * 3 + lines(ROWS)[:-1] + ",\n]", [4, 4]),
        (lines({"data": ROWS}), [1, 1]),
        (lines({"version": "1", "data": ROWS}, indent=1), [4, 8]),
        (lines({"a": {"rows": ROWS}}, indent=1), [4, 8]),
        (lines({"train": ROWS[:1], "test": ROWS[1:]}, indent=1), [3, 9]),
        (lines({"x": ROWS[0], "y": ROWS[1]}, indent=1), [2, 6]),
        (lines({name: [row[name] for row in ROWS] for name in ROWS[0]}), [1, 2]),
        (lines({n: {i: ROWS[i][n] for i in (0, 1)} for n in ROWS[0]}), [1, 2]),
        (
            lines({"columns": list(ROWS[0]), "data": [list(r.values()) for r in ROWS]}),
            [1, 2],
        ),
    ],
)
def test_read_finds_rows_in_every_shape(content, expected):
    items = read(content)
    assert rows(items) == ROWS and numbers(items) == (expected, [])


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "answer": "b"},
        {"messages": TURNS},
        {"messages": TURNS, "tools": [{"type": "function"}]},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]},
        {"question": "a", "documents": [{"title": "t"}], "answer": "b"},
        {"conversations": [{"from": "human", "value": "q"}]},
        {},
    ],
)
def test_read_one_row_is_not_taken_apart(row):
    assert read(json.dumps(row)) == [(1, row)]
    assert read(json.dumps(row, indent=1)) == [(1, row)]


def test_read_lines_that_are_lists_of_messages():
    assert read(lines(TURNS, TURNS)) == [(1, TURNS), (2, TURNS)]


def test_read_line_that_is_an_empty_list_is_not_lost():
    assert read(f"{GOOD}\n[]\n") == [(1, json.loads(GOOD)), (2, [])]
    assert read("[]") == []


def test_read_names_what_it_leaves_out(capsys):
    splits = lines({"train": ROWS, "test": ROWS[:1], "license": "MIT"})
    assert len(read(splits)) == 3
    assert capsys.readouterr().out == (
        "a.json: read train (2 rows), test (1 rows); to read one split: a.json/train; "
        "not used: license\n"
    )
    assert rows(read(splits, "test")) == ROWS[:1]
    assert rows(read(lines({"a": {"b": ROWS}}), "a/b")) == ROWS
    with pytest.raises(
        ValueError, match=r"a\.json has no dev, but train, test, license"
    ):
        read(splits, "dev")
    with pytest.raises(ValueError, match="not one JSON object, so it has no train"):
        read(lines(*ROWS), "train")


def test_read_several_lists_are_refused_with_their_names():
    with pytest.raises(
        ValueError, match=r"features \(1 rows\), rows \(2 rows\).*a.json/f"
    ):
        read(lines({"features": [{"name": "a"}], "rows": ROWS}))


def test_read_notes_keys_that_occur_twice(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(
        f'{GOOD}\n{{"a": 1, "a": 2}}\n{{"b": {{"c": 1, "c": 2}}}}'
    )
    items = list(readers.read_file(tmp_path / "a.jsonl"))
    assert rows(items)[1:] == [{"a": 2}, {"b": {"c": 2}}]
    out = capsys.readouterr().out
    assert "its last value is used (2 lines, the first is line 2)" in out


# --- broken rows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON: Expecting"),
        (GOOD[:-1], "not JSON: Expecting"),
        ('{"question": "a', "not JSON: "),
        ("{'question': 'a'}", "not JSON: Expecting"),
        ("[" * 200_000, "not JSON: nested too deeply"),
        ("9" * 5000, "not JSON: Exceeds the limit"),
        (f"{GOOD} or not", "not JSON: there is text after the value: or not"),
        ("\0", "not JSON: Expecting value"),
        ('{"question": "\x01"}', "not JSON: Invalid control character"),
    ],
)
def test_read_rejects_only_the_broken_line(bad, reason):
    first, second, third = read(f"{GOOD}\n{bad}\n{GOOD}\n")
    assert (first[0], third[0]) == (1, 3) and first[1] == third[1] == json.loads(GOOD)
    assert second.line == 2 and second.reason.startswith(reason)
    assert second.start == readers.reject(2, "", bad).start


def element(number: int) -> str:
    return json.dumps({"question": f"q {number}", "answer": "two, {three}"})


@pytest.mark.parametrize(
    "bad",
    [
        '{"question": "a" "answer": "b"}',
        '{"question": "a, "answer": "b"}',
        '{"question": "never closed}',
        '{"question": ["a", {"question": "b"}',
        '{"messages": [{"role": "user", "content": "q"}, {"role": ]}',
        "{'question': 'a'}",
        "nonsense",
        '{"question": ' + "[" * 5000 + "}",
    ],
)
@pytest.mark.parametrize("joint", [",\n", ", "])
def test_read_goes_on_after_a_broken_element(bad, joint):
    parts = [element(1), element(2), bad, element(4), bad, bad, element(7)]
    items = read("[" + joint.join(parts) + "]")
    good = [json.loads(element(n)) for n in (1, 2, 4, 7)]
    assert [row for row in rows(items) if row in good] == good
    if joint == ",\n":
        assert [line for line in numbers(items)[0] if line in (1, 2, 4, 7)] == [
            1,
            2,
            4,
            7,
        ]
        assert {3, 5} <= set(numbers(items)[1])


def test_read_rejects_each_of_two_broken_elements():
    bad = '{"question": "a" "answer": "b"}'
    items = read("[" + ",\n".join([element(1), bad, bad, element(4)]) + "]")
    assert numbers(items) == ([1, 4], [2, 3])


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_read_keeps_the_rows_before_a_cut(monkeypatch, indent, piece):
    monkeypatch.setattr(json_lists, "PIECE", piece)
    whole = json.dumps(ROWS * 3, indent=indent)
    for end in range(len(whole) - 1, 1, -7):
        items = read(whole[:end])
        count = len(rows(items))
        assert rows(items) == (ROWS * 3)[:count]
        assert count >= whole[:end].count("}") and len(items) == count + 1
        assert "the file" in items[-1].reason or "the list" in items[-1].reason
        assert items[-1].line <= 1 + whole[:end].count("\n")


def test_read_cut_object_is_one_rejected_row():
    content = lines(ROWS[0], {"question": "a", "answer": ["b"] * 5}, indent=1)
    first, second = read(content[:-9])
    assert first == (1, ROWS[0]) and second.line == 5
    assert "the file ends within this row" in second.reason


def test_read_text_after_the_list():
    items = read(f"[{GOOD}]\nthe end\n{GOOD}")
    assert numbers(items) == ([1, 3], [2])


def test_read_rows_one_level_deeper(capsys):
    content = {"info": {"name": "x", "n": 2}, "results": {"items": ROWS, "count": 2}}
    assert rows(read(json.dumps(content))) == ROWS
    said = f"read items ({len(ROWS)} rows); not used: count\n"
    assert capsys.readouterr().out.endswith(said)
    content["info"]["authors"] = [{"name": "y"}]
    assert len(rows(read(json.dumps(content)))) == 2  # which list is meant is not clear


# --- anything ------------------------------------------------------------------------

good_rows = st.dictionaries(
    st.sampled_from(["question", "answer", "n"]),
    st.text() | st.integers() | st.none() | st.lists(st.floats(), max_size=2),
    min_size=1,
)
# Pieces of lines that are no row. None of them can begin one that ends in a later line.
BAD = ["nonsense", "{x", "}", "]", "\0", "\ufffe", '{"a": "b', "{'a': 1}", '{"a":, ']
BAD += ['"', '{"a": 01}', "\\", "tru", "{]", "\u2028x", "-", ":", '{"a" 1}', "9" * 5000]
bad_lines = st.sampled_from(BAD)


def differ(found: object, expected: object) -> bool:
    return json.dumps(found) != json.dumps(expected)  # NaN equals NaN there


@pytest.mark.slow
@given(
    st.lists(good_rows | bad_lines, min_size=1, max_size=30),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n "]),
    st.booleans(),
)
@any_file
def test_read_every_line_is_a_row_or_rejected(parts, end, escaped):
    """Good rows survive whatever stands between them, as json.loads reads them."""
    texts = [
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=escaped)
        for part in parts
    ]
    content = GOOD + end + end.join(texts) + end
    found = read(content.encode("utf-8", "surrogatepass"))
    step = end.count("\n")
    expected = [json.loads(GOOD), *(part for part in parts if isinstance(part, dict))]
    assert not differ(rows(found), expected)
    good = [2 + n for n, part in enumerate(parts) if isinstance(part, dict)]
    bad = [2 + n for n, part in enumerate(parts) if isinstance(part, str)]
    assert numbers(found) == tuple(
        [(line - 1) * step + 1 for line in lines] for lines in ([1, *good], bad)
    )


@pytest.mark.slow
@given(st.lists(good_rows, max_size=8), st.sampled_from([None, 0, 1]), st.data())
@any_file
def test_read_list_in_small_pieces_equals_json(values, indent, data):
    content = json.dumps(values, indent=indent, ensure_ascii=data.draw(st.booleans()))
    before, json_lists.PIECE = json_lists.PIECE, data.draw(st.integers(1, 30))
    try:
        found = read(content.encode("utf-8", "surrogatepass"))
    finally:
        json_lists.PIECE = before
    assert not differ(rows(found), json.loads(content)) and not numbers(found)[1]


PIECES = [b'{"question": "a", "answer": "b"}', b"NaN", b"\\ud8", b"{", b"}", b"[", b"]"]
PIECES += [b'"', b",", b":", b"'", b"\\", b"1e9", b"\n", b"\n", b"\r", b" ", b"\0"]
PIECES += [b"\xff", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xe9", b'"train":', b'"role":']
anything = st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join)


@pytest.mark.slow
@settings(any_file, max_examples=1000)
@given(anything)
def test_read_any_bytes_raise_only_value_error(content):
    try:
        found = read(content)
    except ValueError as error:
        assert "several lists" in str(error)
        return
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason.isascii() and item.start.isascii()
            assert 1 <= item.line <= 1 + content.count(b"\n")


@pytest.mark.slow
def test_read_ten_thousand_broken_rows(tmp_path):
    """Every kind of damage at once: nothing good is lost, each bad line is named."""
    import random

    draw = random.Random(0)
    strange = ['"\\ud800"', "NaN", "-Infinity", "9" * 400, '"a\u2028b"', "[[[]]]"]
    strange += ['"' + "x" * 100_000 + '"', '"\\u0000"', "null", "true", "1e999"]
    path, good, bad = tmp_path / "a.jsonl", [], []
    with path.open("w", encoding="utf-8", newline="") as file:
        for line in range(1, 10_001):
            if draw.random() < 0.3:
                bad.append(line)
                file.write(draw.choice(BAD) + "\n")
            else:
                good.append(line)
                value = draw.choice(strange)
                file.write(f'{{"question": "{line}", "answer": {value}}}\r\n')
        file.write(f'{{"question": "10 MB", "answer": "{"y" * 10_000_000}"}}')
    items = list(readers.read_file(path))
    assert numbers(items) == ([*good, 10_001], bad)
    assert [row["question"] for row in rows(items)[:-1]] == list(map(str, good))


def test_read_file_names_the_file(tmp_path: Path):
    (tmp_path / "a.json").write_text(lines({"a": ROWS, "b": ROWS}))
    with pytest.raises(ValueError, match=r"a\.json has several lists"):
        list(readers.read_file(tmp_path / "a.json"))
