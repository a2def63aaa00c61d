"""Documents of every format become text; a bad one does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import write_docx, write_pdf

from colab_utils import creation

ROOT = Path(__file__).resolve().parents[2]
PAGE = """\
<!doctype html><html><head><title>Site</title><meta charset="utf-8">
<style>p { color: red }</style></head>
<body><!-- a remark --><nav>Home</nav>
<h1>The   lighthouse</h1><p>It was built in <b>1887</b>
by <i>Ada</i>.<br>Caf\u00e9 below.</p><ul><li>tall</li><li>white</li></ul>
<table><tr><th>part</th><th>m</th></tr><tr><td>tower</td><td>31</td></tr></table>
<pre>a
  b</pre><script>var x = "<p>no</p>";</script></body></html>"""
TEXT = (
    "Home\n\nThe lighthouse\n\nIt was built in 1887 by Ada.\nCaf\u00e9 below.\n\n"
    "tall\n\nwhite\n\npart m\n\ntower 31\n\na\nb"
)


def read_one(path: Path) -> str:
    (document,), rejected = creation.read(path)
    assert rejected == [] and document.name == path.name
    return document.text


def reasons(folder: Path, name: str) -> str:
    """Return why the file `name` is rejected, while the other documents are kept."""
    (folder / "good.txt").write_text("A good text.")
    documents, rejected = creation.read(folder)
    assert [one.name for one in documents] == ["good.txt"]
    (found,) = [one.reason for one in rejected if one.start == name]
    return found


def test_read_html_as_a_page_shows_it(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE, encoding="utf-8")
    assert read_one(path) == TEXT
    path.write_text(PAGE.replace("utf-8", "latin-1"), encoding="latin-1")
    assert read_one(path) == TEXT


def test_read_pdf(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", ["The tower is tall.", "It is white."])
    assert read_one(path) == "The tower is tall.\n\nIt is white."


def test_read_docx_with_its_table_in_place(tmp_path):
    path = tmp_path / "a.docx"
    write_docx(path, "The tower is tall.", [["part", "m"], ["tower", "31"]], "End.")
    assert read_one(path) == "The tower is tall.\n\npart | m\ntower | 31\n\nEnd."


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"one  \r\ntwo\r\n\r\n\r\n\r\nthree\n", "one\ntwo\n\nthree"),
        ("\ufeffcaf\u00e9".encode(), "caf\u00e9"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9"),
        ("caf\u00e9 \u20ac".encode("cp1252"), "caf\u00e9 \u20ac"),
    ],
    ids=["lines", "BOM", "UTF-16", "Windows-1252"],
)
def test_read_text_of_any_encoding(tmp_path, raw, text, capsys):
    for suffix in (".txt", ".md", ".MD"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(raw)
        assert read_one(path) == text
    guessed = "Windows-1252" in capsys.readouterr().out
    assert guessed == (raw == text.encode("cp1252", "ignore"))


def test_read_folder_and_glob(tmp_path):
    for name in ("a.md", "deep/b.txt", "deep/c.md", ".hidden.md", "~$open.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    names = [one.name for one in creation.read(tmp_path)[0]]
    assert names == ["a.md", "deep/b.txt", "deep/c.md"]
    found, _ = creation.read(f"{tmp_path}/**/*.md")
    assert [one.name for one in found] == ["a.md", "deep/c.md"]
    assert [one.name for one in creation.read(tmp_path / "a.md")[0]] == ["a.md"]


def test_read_a_file_whose_name_looks_like_a_pattern(tmp_path):
    path = tmp_path / "notes [1].md"
    path.write_text("One.")
    assert read_one(path) == "One."


def test_read_rejects_the_same_text_twice(tmp_path):
    (tmp_path / "copy.md").write_text("A good text.\n")
    (tmp_path / "good.txt").write_text("A good text.")
    documents, (twice,) = creation.read(tmp_path)
    assert [one.name for one in documents] == ["copy.md"]
    assert (twice.line, twice.start) == (2, "good.txt")
    assert twice.reason == "same text as copy.md"


def test_read_empty_file(tmp_path):
    (tmp_path / "empty.md").write_text(" \n\n")
    assert reasons(tmp_path, "empty.md") == "the document has no text"


def test_read_scanned_pdf(tmp_path, capsys):
    write_pdf(tmp_path / "scan.pdf", ["", "", ""])
    reason = reasons(tmp_path, "scan.pdf")
    assert reason.startswith("its 3 pages have no text, as in a scanned PDF")
    assert "ocrmypdf" in reason
    write_pdf(tmp_path / "scan.pdf", ["", "Some text.", ""])
    assert "Some text." in [one.text for one in creation.read(tmp_path)[0]]
    assert "scan.pdf: 2 of 3 pages have no text" in capsys.readouterr().out


def test_read_encrypted_pdf(tmp_path):
    write_pdf(tmp_path / "locked.pdf", ["Secret."], password="1234")
    reason = reasons(tmp_path, "locked.pdf")
    assert reason == "the PDF is encrypted; save a copy without a password"
    write_pdf(tmp_path / "open.pdf", ["Readable."], password="")
    assert "Readable." in [one.text for one in creation.read(tmp_path)[0]]


@pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
@pytest.mark.parametrize("raw", [b"", b"no such format", b"PK\x03\x04 cut off"])
def test_read_damaged_file(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    reason = reasons(tmp_path, name)
    assert reason.startswith("cannot be read (") and "save it again" in reason


def test_read_cut_off_files(tmp_path):
    write_pdf(tmp_path / "a.pdf", ["The tower is tall."])
    write_docx(tmp_path / "b.docx", "The tower is tall.", [["a"]], "End.")
    for path in (tmp_path / "a.pdf", tmp_path / "b.docx"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "good.txt").write_text("A good text.")
    documents, rejected = creation.read(tmp_path)
    assert "good.txt" in [one.name for one in documents]
    assert len(documents) + len(rejected) == 3


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("old.doc", ".doc is not one of .txt, .md"),
        ("photo.png", ".png is not one of"),
        ("LICENSE", "a file without a suffix is not one of"),
    ],
)
def test_read_other_formats(tmp_path, name, part):
    (tmp_path / name).write_bytes(b"x")
    assert part in reasons(tmp_path, name)


def test_read_binary_named_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x7fELF\0\0\1")
    assert "NUL bytes" in reasons(tmp_path, "a.txt")


def test_read_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"docs/\*\.pdf"):
        creation.read(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="matches no file"):
        creation.read(f"{tmp_path}/*.md")
    (tmp_path / "empty.md").touch()
    with pytest.raises(ValueError, match=r"empty\.md: the document has no text"):
        creation.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("a.pdf", "pypdf", "pypdf"),
        ("a.docx", "docx", "python-docx"),
        ("a.html", "bs4", "beautifulsoup4"),
    ],
)
def test_read_without_its_library(tmp_path, name, module, package):
    (tmp_path / name).write_text("x")
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from colab_utils import creation\ncreation.read({str(tmp_path / name)!r})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    last = run.stderr.splitlines()[-1]
    assert last == (
        f"ModuleNotFoundError: {name} needs the package {package}, and {module} is not "
        f"installed. Run `pip install {package}`, then run this cell again."
    )
