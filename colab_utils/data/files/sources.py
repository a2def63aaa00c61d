"""Find the local files that the name of a dataset stands for."""

from __future__ import annotations

import glob
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from colab_utils import parameters
from colab_utils.data.files.streams import ZIP
from colab_utils.data.schema import escape

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".ndjson", ".arrow")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}")
HUB_PAGE = re.compile(r"https?://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/?.*")
# What to do with files of other types.
INSTEAD = {
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV (File > Save as > CSV UTF-8)",
    (".tar", ".tgz", ".7z", ".rar"): "unpack it, then name one of its files",
    (".txt", ".md", ".html", ".pdf", ".docx"): (
        "it is a document without rows; make one row of each paragraph, for example in "
        'a JSON Lines file with lines such as {"text": "..."}'
    ),
    (".pkl", ".pickle", ".npy", ".npz", ".pt", ".feather", ".sqlite", ".db"): (
        "load it with the program that wrote it, then save it as Parquet or JSON Lines"
    ),
    (".yaml", ".yml", ".xml", ".toml"): "convert it to JSON Lines",
}


@dataclass(frozen=True)
class Source:
    """A file to read, and the part of it that is read.

    `member` is a file in a zip file. `key` names a list in a JSON file.
    """

    path: Path
    member: str = ""
    key: str = ""

    @property
    def name(self) -> str:
        """The path and the member, as the reader of a message knows them."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def suffix(self) -> str:
        """The suffix of the data, without that of the compression."""
        return data_suffix(self.member or self.path.name)


def data_suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, without a compression's.

    >>> data_suffix("train.JSONL.gz")
    '.jsonl'
    """
    path = PurePath(name.lower())
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def find(source: str) -> list[Source] | None:
    """Return the files that `source` names, sorted by name, or None for a Hub id.

    `source` is a file, a pattern such as data/*.jsonl, a folder with one data file, or
    a part of a file: data.zip/train.jsonl, data.json/train. Raises FileNotFoundError
    when nothing has that name, and ValueError when nothing can have it or when it is
    not clear what to read.
    """
    path = parameters.path(source)
    if path.is_file():
        return [_whole(path)]
    if path.is_dir():
        return [_only_file(path)]
    if found := sorted(glob.glob(str(path), recursive=True)):
        files = [Path(name) for name in found if Path(name).is_file()]
        return [_whole(file) for file in files]
    for parent in path.parents:
        if parent.is_file():
            return [_part(parent, path.relative_to(parent).as_posix())]
    if "://" not in source and HUB_ID.fullmatch(source) and not _looks_local(path):
        return None
    if HUB_PAGE.fullmatch(source):
        return None
    raise FileNotFoundError(_missing(source, path))


def _looks_local(path: Path) -> bool:
    """Return whether a name that could be a Hub id, such as data/my.txt, is a file."""
    is_data = data_suffix(path.name) in SUFFIXES or path.suffix in COMPRESSED
    return is_data or bool(path.suffix and path.parent.is_dir())


def _known() -> str:
    return ", ".join(SUFFIXES[:5])


def _missing(source: str, path: Path) -> str:
    if "://" in source:
        return (
            f"{source} is a web address. Download it first, in a cell: !wget {source} "
            f"and then name the file."
        )
    if glob.has_magic(source):
        return f"No file matches {source} (looked in {Path.cwd()})."
    near = _data_files(path.parent)[:5]
    hint = f" {path.parent} has: {', '.join(p.name for p in near)}." if near else ""
    return (
        f"There is no file {source} (looked in {Path.cwd()}).{hint} Give a path to a "
        f"{_known()} file, or a Hub id such as databricks/databricks-dolly-15k."
    )


def _data_files(folder: Path) -> list[Path]:
    files = (path for path in folder.glob("*") if not path.name.startswith("."))
    return sorted(path for path in files if _is_data(path.name))


def _is_data(name: str) -> bool:
    return data_suffix(name) in SUFFIXES or name.lower().endswith(".zip")


def _only_file(folder: Path) -> Source:
    files = _data_files(folder)
    if len(files) == 1:
        return _whole(files[0])
    if not files:
        raise ValueError(f"{folder} is a folder without data files ({_known()}).")
    names = ", ".join(path.name for path in files[:8])
    more = f" and {len(files) - 8} more" if len(files) > 8 else ""
    pattern = folder / f"*{''.join(files[0].suffixes[-2:])}"
    raise ValueError(
        f"{folder} is a folder with {len(files)} data files: {names}{more}. Name one "
        f"of them, or read several as one dataset with a pattern: {pattern}."
    )


def _whole(path: Path) -> Source:
    """Return the source for a whole file; raises ValueError if its type is unknown."""
    suffix = data_suffix(path.name)
    if suffix in SUFFIXES:
        return Source(path, _only_member(path) if _is_zip(path) else "")
    if path.suffix.lower() == ".zip":
        return Source(path, _only_member(path))
    for suffixes, advice in INSTEAD.items():
        if suffix in suffixes:
            raise ValueError(f"{path} can't be read: {advice}.")
    if path.suffix.lower() in COMPRESSED:
        kind = "data.jsonl" + path.suffix.lower()
        raise ValueError(f"{path} does not name its format; rename it, as in {kind}.")
    raise ValueError(f"{path}: unknown file type; use one of {_known()}.")


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def _members(path: Path) -> list[str]:
    """Return the data files in a zip file; raises ValueError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} can't be read as a zip file: {error}.") from error
    parts = {name: PurePath(name).parts for name in names}
    return [
        name
        for name in sorted(names)
        if data_suffix(name) in SUFFIXES
        and not any(part.startswith((".", "__MACOSX")) for part in parts[name])
    ]


def _only_member(path: Path) -> str:
    members = _members(path)
    if len(members) == 1:
        return members[0]
    if not members:
        raise ValueError(f"{path} has no data file in it ({_known()}).")
    names = ", ".join(map(escape, members[:8]))
    raise ValueError(
        f"{path} has {len(members)} data files: {names}. Name one of them, as in "
        f"{path}/{escape(members[0])}."
    )


def _part(path: Path, part: str) -> Source:
    """Return the source for a member of a zip file, or for a list in a JSON file."""
    if not _is_zip(path):
        whole = _whole(path)
        if whole.suffix not in (".json", ".jsonl", ".ndjson"):
            raise ValueError(
                f"{path} is one file of rows, so it has no part {part}. "
                "Name the file only."
            )
        return Source(path, key=part)
    members = _members(path)
    for member in members:
        if part == member or part.startswith(f"{member}/"):
            return Source(path, member, part[len(member) + 1 :])
    if part and len(members) == 1 and data_suffix(members[0]) == ".json":
        return Source(path, members[0], part)
    names = ", ".join(map(escape, members[:8])) or "no data file"
    raise FileNotFoundError(f"{path} has no {part}. It has: {names}.")
