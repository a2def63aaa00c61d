"""A stand-in for the Hub's datasets on this machine: six benchmarks of a few rows each.

The repositories have the names, configurations, splits and columns of the real ones,
and the rows are made up. `Hub` answers what the package `datasets` asks: the info, the
tree, the paths and the files of a repository.
"""

from __future__ import annotations

import http.server
import json
import urllib.parse
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet
import yaml

REVISION = "0" * 40
COLORS = ["red", "green", "blue", "gray"]
MMLU_SUBJECTS = 57


def _arc(n: int) -> dict[str, Any]:
    labels = ["A", "B", "C", "D"] if n % 2 else ["1", "2", "3", "4"]
    return {
        "id": f"q{n}",
        "question": f"Which color has the flag of island {n}?",
        "choices": {"text": COLORS, "label": labels},
        "answerKey": labels[n % 4],
    }


def _hellaswag(n: int) -> dict[str, Any]:
    return {
        "ind": n,
        "activity_label": "Painting",
        "ctx_a": f"A man opens can {n}.",
        "ctx_b": "he",
        "ctx": f"A man opens can {n}. he",
        "endings": [f"paints the wall {color}. [substeps]" for color in COLORS],
        "source_id": f"wikihow~{n}",
        "split": "val",
        "split_type": "indomain",
        "label": str(n % 4),
    }


def _mmlu(n: int) -> dict[str, Any]:
    question = f" What is the color of number {n}? "
    return {
        "question": question,
        "subject": "colors",
        "choices": COLORS,
        "answer": n % 4,
    }


def _truthfulqa(n: int) -> dict[str, Any]:
    choices = [f"It is {color}." for color in COLORS]
    return {
        "question": f"What color is the sky of planet {n}?",
        "mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": choices, "labels": [1, 1, 0, 0]},
    }


def _winogrande(n: int) -> dict[str, Any]:
    return {
        "sentence": f"The cup {n} did not fit into the box because _ was too large.",
        "option1": "the cup",
        "option2": "the box",
        "answer": "12"[n % 2],
    }


def _gsm8k(n: int) -> dict[str, Any]:
    answer = f"He has <<{n}+1={n + 1}>>{n + 1} cups.\n#### {n + 1}"
    return {"question": f"Tom has {n} cups and buys 1. How many?", "answer": answer}


# Repository: configuration, splits with their numbers of rows, and how a row is made.
BENCHMARKS = {
    "allenai/ai2_arc": ("ARC-Challenge", {"train": 3, "test": 9}, _arc),
    "Rowan/hellaswag": ("default", {"train": 3, "validation": 9}, _hellaswag),
    "truthfulqa/truthful_qa": ("multiple_choice", {"validation": 9}, _truthfulqa),
    "allenai/winogrande": ("winogrande_xl", {"train": 3, "validation": 9}, _winogrande),
    "openai/gsm8k": ("main", {"train": 9, "test": 9}, _gsm8k),
}


def write(root: Path, mmlu: bool = True) -> None:
    """Write the repositories of the first Open LLM Leaderboard below a folder."""
    for repo, (config, splits, make) in BENCHMARKS.items():
        write_repository(root / repo, [config], splits, make)
    if mmlu:
        # The subjects' names are those of the harness's tasks.
        write_repository(root / "cais/mmlu", _subjects(), {"dev": 5, "test": 3}, _mmlu)


def _subjects() -> list[str]:
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    files = [path.stem for path in folder.glob("mmlu_*.yaml")]
    assert len(files) == MMLU_SUBJECTS
    return sorted(name.removeprefix("mmlu_") for name in files)


def write_repository(
    folder: Path, configs: list[str], splits: dict[str, int], make: Any
) -> None:
    """Write Parquet files, and a README that names the configurations' files."""
    named = []
    for config in configs:
        files = []
        for split, size in splits.items():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = pa.Table.from_pylist([make(n) for n in range(size)])
            pa.parquet.write_table(rows, path)
            files.append({"split": split, "path": f"{config}/{split}-*"})
        named.append({"config_name": config, "data_files": files})
    header = yaml.safe_dump({"configs": named})
    (folder / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")


class Hub(http.server.BaseHTTPRequestHandler):
    """Serve the repositories below `root`."""

    root: ClassVar[Path]

    @classmethod
    def of(cls, root: Path) -> type[Hub]:
        """Return a handler for the repositories below a folder."""
        return type("HubOf", (cls,), {"root": root})

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = path.removeprefix("/api").strip("/").split("/")[1:]
        repo, rest = "/".join(parts[:2]), parts[2:]
        folder = self.root / repo
        if not (folder / "README.md").is_file():
            self.answer(404, b"", "RepoNotFound")
        elif rest[:1] == ["resolve"]:
            file = folder.joinpath(*rest[2:])
            found = file.is_file()
            code = "" if found else "EntryNotFound"
            self.answer(
                200 if found else 404, file.read_bytes() if found else b"", code
            )
        elif rest[:1] == ["tree"]:
            below = folder.joinpath(*rest[2:])
            recursive = "recursive=true" in self.path.lower()
            if below.is_dir():
                paths = below.rglob("*") if recursive else below.iterdir()
                self.reply([self.entry(folder, one) for one in sorted(paths)])
            else:
                self.answer(404, b"", "EntryNotFound")
        elif rest[:1] == ["paths-info"]:
            size = int(self.headers.get("Content-Length", 0))
            asked = urllib.parse.parse_qs(self.rfile.read(size).decode())["paths"]
            paths = (folder / one for one in asked)
            self.reply([self.entry(folder, one) for one in paths if one.exists()])
        else:
            paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
            files = [{"rfilename": self.entry(folder, one)["path"]} for one in paths]
            self.reply({"id": repo, "sha": REVISION, "siblings": files})

    do_HEAD = do_POST = do_GET

    @staticmethod
    def entry(folder: Path, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        name = path.relative_to(folder).as_posix()
        size = 0 if path.is_dir() else path.stat().st_size
        return {"type": kind, "oid": REVISION, "size": size, "path": name}

    def reply(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode())

    def answer(self, status: int, body: bytes, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("ETag", f'"{abs(hash(body)):x}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
