"""Open a file as a stream of text, whatever its compression and its encoding."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

Numbered = tuple[int, object]  # a line number and the raw row

# The first bytes decide, not the name: a browser may have decompressed data.jsonl.gz.
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
BLOCK = 1 << 14  # bytes that are read at a time
ZIP = b"PK\x03\x04"
# What reading raises when a compressed file is cut or damaged.
DAMAGE = (
    EOFError,
    OSError,
    RuntimeError,  # an encrypted member of a zip file
    NotImplementedError,  # its compression is unknown
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
ESCAPE = "surrogateescape"
UTF16 = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Bytes that text in cp1252 does not have, and longer runs than its words have: they are
# another encoding, such as that of a Cyrillic or a Chinese text.
NOT_CP1252 = re.compile(
    rb"[\x81-\x84\x86-\x89\x8b\x8d\x8f\x90\x98\x9b\x9d\xa2\xa4-\xa6\xa8\xac\xad\xaf"
    rb"\xb6\xb8\xb9\xff]|[\x80-\xff]{4}"
)


class Notes:
    """What a reader decided about a file; one line of each kind is printed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._found: dict[str, list[int]] = {}

    def add(self, what: str, line: int) -> None:
        """Count a line to which `what` applies."""
        count_first_last = self._found.setdefault(what, [0, line, 0])
        count_first_last[0] += count_first_last[2] != line
        count_first_last[2] = line

    def show(self) -> None:
        """Print how many lines each note has, and the first of them."""
        for what, (count, first, _) in self._found.items():
            lines = "1 line" if count == 1 else f"{count:,} lines"
            print(f"{self.name}: {what} ({lines}, the first is line {first:,})")


class _Undamaged(io.RawIOBase):
    """A stream that ends where it can't be read further; `damage` says why."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.damage = ""
        self._read = cast(io.BufferedReader, raw).read1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # Of a longer read, Arrow would lose the part before the damage.
            data = self._read(min(len(buffer), BLOCK))
        except DAMAGE as error:
            self.damage = str(error)
            return 0
        buffer[: len(data)] = data
        return len(data)


class Stream(io.BufferedReader):
    """The bytes of a file, up to where it is damaged."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(_Undamaged(raw), BLOCK)

    @property
    def damage(self) -> str:
        """Why the stream ends too early, or ""."""
        return cast(_Undamaged, self.raw).damage


def open_bytes(path: Path, member: str = "") -> Stream:
    """Open a file, or a member of a zip file, and decompress it while it is read.

    Raises ValueError when it can't be opened.
    """
    try:
        if member:
            return _decompressed(zipfile.ZipFile(path).open(member))
        return _decompressed(path.open("rb"))
    except DAMAGE as error:
        if isinstance(error, RuntimeError) and "encrypted" in str(error):
            error = RuntimeError("it has a password; unpack it first")
        raise ValueError(f"{path.name} can't be opened: {error}") from error


def _decompressed(raw: IO[bytes]) -> Stream:
    stream = Stream(raw)
    head = stream.peek(8)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if kind == "gzip":
        return Stream(cast(IO[bytes], gzip.open(stream)))
    if kind == "bzip2" and head[4:8] in (b"1AY&", b"\x17rE8"):  # not text such as BZh
        return Stream(bz2.open(stream))
    if kind == "xz":
        return Stream(lzma.open(stream))
    if kind == "zstd":
        import pyarrow

        source = pyarrow.PythonFile(stream, mode="r")
        return Stream(pyarrow.CompressedInputStream(source, "zstd"))
    return stream


class Text:
    """The text of a stream, by lines or in pieces, in one pass.

    Reading a damaged file does not raise: the text ends there. Lines that are not UTF-8
    are read as cp1252 (Windows) where that is plausible. In other lines, bytes that are
    not UTF-8 become lone surrogates, and the schema rejects the rows with them.
    """

    def __init__(self, stream: Stream, notes: Notes, newline: str = "\n") -> None:
        self.notes, self._stream, self._broken = notes, stream, ""
        self._newline, self._pending, self._is_utf8 = newline, "", False
        self._ends, self._cut_line = 0, False
        encoding = _encoding(stream)
        errors = "surrogatepass" if "16" in encoding or "32" in encoding else ESCAPE
        self._wrapper = io.TextIOWrapper(stream, encoding, errors, newline)

    @property
    def damage(self) -> str:
        """Why the text ends too early, or ""."""
        return self._stream.damage or self._broken

    @property
    def lines(self) -> int:
        """The number of lines read so far; the last one may be incomplete."""
        return self._ends + self._cut_line

    def __iter__(self) -> Iterator[str]:
        """Yield the lines that have not been read yet, with their ends."""
        try:
            yield from self._unread_lines()
            for line in self._wrapper:
                self._ends += 1
                yield line if line.isascii() else self._decoded(line, self._ends)
        except UnicodeDecodeError as error:  # in UTF-16 only
            self._broken = str(error)

    def _unread_lines(self) -> Iterator[str]:
        rest, self._pending = self._pending, ""
        if rest:
            self._ends -= rest.count("\n")
            self._cut_line = False
            if not rest.endswith("\n"):
                end = self._ends + rest.count("\n") + 1
                rest += self._decoded(self._wrapper.readline(), end)
            for line in io.StringIO(rest, newline=self._newline):
                self._ends += 1
                yield line

    def read(self, size: int) -> str:
        """Return up to `size` characters, or "" at the end."""
        text, self._pending = self._pending, ""
        if text:
            return text
        try:
            text = self._wrapper.read(size)
        except UnicodeDecodeError as error:
            self._broken = str(error)
        if text:
            text = text if text.isascii() else self._decoded(text, self._ends + 1)
            self._ends += text.count("\n")
            self._cut_line = not text.endswith("\n")
        return text

    def unread(self, text: str) -> None:
        """Put text back that `read` returned."""
        self._pending = text + self._pending

    def _decoded(self, text: str, number: int) -> str:
        """Return the text, with what is cp1252 decoded as such."""
        try:
            text.encode()
            self._is_utf8 |= not text.isascii()
            return text
        except UnicodeEncodeError:
            lines = enumerate(text.split("\n"), start=number)
            return "\n".join(self._as_windows(line, n) for n, line in lines)

    def _as_windows(self, line: str, number: int) -> str:
        try:
            raw = line.encode("utf-8", ESCAPE)
        except UnicodeEncodeError:  # UTF-16 with lone surrogates
            return line
        # A line with other signs, or after lines in UTF-8, is damaged UTF-8.
        mixed = re.search("[\x80-\ud7ff\ue000-\U0010ffff]", line)
        if mixed or self._is_utf8 or NOT_CP1252.search(raw) or line.isascii():
            return line
        self.notes.add("not UTF-8, read as cp1252 (Windows)", number)
        return raw.decode("cp1252")


def _encoding(stream: Stream) -> str:
    head = stream.peek(1024)[:1024]
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    for mark, encoding in UTF16.items():
        if head.startswith(mark):
            return encoding
    # UTF-16 without a mark: most second bytes of Latin text are 0, and no first byte.
    for first, encoding in ((0, "utf-16-le"), (1, "utf-16-be")):
        zeros = head[1 - first :: 2].count(0)
        if len(head) >= 16 and zeros > 0.3 * len(head) and 0 not in head[first::2]:
            return encoding
    return "utf-8"


class Lines:
    """Lines with their numbers; lines that were read can be put back."""

    def __init__(self, text: Text, first: int = 1) -> None:
        self.number = first - 1
        self._lines = iter(text)
        self._again: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        return line

    def take(self, count: int) -> list[str]:
        """Return the next lines, at most `count` of them."""
        return [line for _, line in zip(range(count), self, strict=False)]

    def put_back(self, lines: list[str], number: int) -> None:
        """Put lines back, of which the first has this number."""
        self._again.extendleft(reversed(lines))
        self.number = number - 1
