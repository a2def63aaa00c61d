"""Read documents: text, Markdown, HTML, PDF and DOCX files become plain text."""

from __future__ import annotations

import codecs
import glob
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colab_utils import parameters
from colab_utils.data.schema import Rejected, reject

# Not part of the text that a reader of a page sees.
HIDDEN = ["head", "script", "style", "template", "noscript", "svg"]
LINES = ["li", "tr", "dt", "dd"]
BLOCKS = ["p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table"]
BLOCKS += ["section", "article", "main", "header", "footer", "nav", "aside", "pre"]
BLOCKS += ["blockquote", "figure", "figcaption", "form", "hr", "address", "details"]


@dataclass(frozen=True)
class Document:
    """The name of a document, and its text with an empty line between paragraphs."""

    name: str
    text: str


def read(source: str | Path) -> tuple[list[Document], list[Rejected]]:
    """Return the documents in a file, a folder or a glob, and the rejected ones.

    `source` is "notes.md", "docs" or "docs/**/*.pdf". A rejected document keeps its
    number among the files, the reason and its name. Raises FileNotFoundError if no file
    matches, ValueError if no document has text, and ModuleNotFoundError with the
    command that installs a missing library.
    """
    found: dict[str, Document] = {}
    rejected = []
    for number, (name, path) in enumerate(_files(source).items(), start=1):
        try:
            text = _text(path)
        except (ValueError, OSError) as error:
            rejected.append(reject(number, str(error), name))
            continue
        first = found.setdefault(text, Document(name, text))
        if first.name != name:
            rejected.append(reject(number, f"same text as {first.name}", name))
    if not found:
        reasons = "; ".join(f"{r.start}: {r.reason}" for r in rejected[:3])
        raise ValueError(f"No document of {source} can be used. {reasons}.")
    return list(found.values()), rejected


def _files(source: str | Path) -> dict[str, Path]:
    """Return the files by their names, relative to the folder that holds all."""
    path = parameters.path(source)
    if path.is_dir():
        found = list(path.rglob("*"))
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        found = [path] if path.is_file() else found
    # Hidden files, and those that Word keeps while a document is open.
    files = [p for p in found if p.is_file() and not p.name.startswith((".", "~$"))]
    if not files:
        raise FileNotFoundError(
            f"{source} matches no file (looked for {path.absolute()}). Give a file, a "
            "folder or a pattern such as docs/*.pdf."
        )
    root = path if path.is_dir() else _common(files)
    return {file.relative_to(root).as_posix(): file for file in sorted(files)}


def _common(files: list[Path]) -> Path:
    """Return the deepest folder that holds all files."""
    return next(p for p in files[0].parents if all(p in f.parents for f in files))


def _text(path: Path) -> str:
    """Return a document's text; raises ValueError with the reason if it has none."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        known = ", ".join(READERS)
        raise ValueError(
            f"{path.suffix or 'a file without a suffix'} is not one of {known}; save "
            "the document in one of these formats"
        )
    try:
        text = read(path)
    except (ValueError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries raise many types for a damaged file
        raise ValueError(
            f"cannot be read ({type(error).__name__}: {str(error)[:120]}); open it "
            "and save it again"
        ) from error
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not text:
        raise ValueError("the document has no text")
    return text


def _library(name: str, package: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} needs the package {package}, and {error.name} is not "
            f"installed. Run `pip install {package}`, then run this cell again."
        ) from error


def _plain(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    if b"\0" in raw:
        raise ValueError("it holds NUL bytes, so it is not a text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        print(f"{path.name} is not UTF-8: it is read as Windows-1252")
        return raw.decode("cp1252", "replace")


def _html(path: Path) -> str:
    bs4 = _library("bs4", "beautifulsoup4", path)
    soup = bs4.BeautifulSoup(path.read_bytes(), "html.parser")
    for tag in soup(HIDDEN):
        tag.decompose()
    for text in soup.find_all(string=True):
        # A line break of the source is a space on the page, except in code.
        if type(text) is bs4.NavigableString and not text.find_parent("pre"):
            text.replace_with(re.sub(r"\s+", " ", text))
    for tag in soup([*BLOCKS, *LINES]):
        space = "\n" if tag.name in LINES else "\n\n"
        tag.insert_before(space)
        tag.insert_after(space)
    for tag in soup(["br", "td", "th"]):
        tag.insert_after("\n" if tag.name == "br" else " ")
    return "\n".join(line.strip(" ") for line in soup.get_text().split("\n"))


def _pdf(path: Path) -> str:
    pypdf = _library("pypdf", "pypdf", path)
    advice = "save a copy without a password"
    pdf = pypdf.PdfReader(path)
    try:
        locked = pdf.is_encrypted and not pdf.decrypt("")
    except pypdf.errors.DependencyError:  # AES needs the package cryptography
        raise ValueError(f"the PDF is encrypted with AES; {advice}") from None
    if locked:
        raise ValueError(f"the PDF is encrypted; {advice}")
    pages = [page.extract_text().strip() for page in pdf.pages]
    empty = pages.count("")
    if empty == len(pages):
        raise ValueError(
            f"its {len(pages)} pages have no text, as in a scanned PDF; recognize the "
            "text first, for example with ocrmypdf"
        )
    if empty:
        print(f"{path.name}: {empty} of {len(pages)} pages have no text")
    return "\n\n".join(pages)


def _docx(path: Path) -> str:
    docx = _library("docx", "python-docx", path)
    blocks = []
    for block in docx.Document(str(path)).iter_inner_content():
        if rows := getattr(block, "rows", None):
            cells = ([cell.text for cell in row.cells] for row in rows)
            blocks.append("\n".join(" | ".join(row) for row in cells))
        else:
            blocks.append(block.text)
    return "\n\n".join(blocks)


READERS: dict[str, Callable[[Path], str]] = {
    ".txt": _plain,
    ".md": _plain,
    ".markdown": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
}
