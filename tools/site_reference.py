"""Write the pages of the API reference: one for each subpackage of the package.

Only the syntax of the files is read, so the site needs none of the package's
dependencies. mkdocstrings later fills in the docstrings and signatures.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

BLOCK = """\
::: {name}
    options:
      heading_level: {level}
      members: {members}
"""


def reference_pages(package: Path) -> dict[str, str]:
    """Return the Markdown of each page by its name: index.md, weights.md, ..."""
    pages = {}
    rows = ["| Part | What it does |", "|---|---|"]
    for entry in sorted(package.iterdir(), key=lambda entry: (entry.is_dir(), entry)):
        folder = entry.is_dir() and (entry / "__init__.py").exists()
        if not folder and (entry.suffix != ".py" or entry.stem == "__init__"):
            continue
        page = folder_page(package.name, entry) if folder else module_page(entry)
        pages[f"{entry.stem}.md"] = page
        doc = docstring(entry / "__init__.py" if folder else entry)
        what = doc.partition("\n\n")[0].replace("\n", " ").replace("|", r"\|")
        rows.append(f"| [`{package.name}.{entry.stem}`]({entry.stem}.md) | {what} |")
    intro = f"# API reference\n\n{docstring(package / '__init__.py')}\n\n"
    return {"index.md": intro + "\n".join(rows) + "\n", **pages}


def module_page(path: Path) -> str:
    """Return the page of a module that is not in a subpackage."""
    name = f"{path.parent.name}.{path.stem}"
    members = public_names(path)
    return f"# {name}\n\n" + BLOCK.format(name=name, level=2, members=members)


def folder_page(package: str, folder: Path) -> str:
    """Return a subpackage's page: docstring, what notebooks call, then each file."""
    name = f"{package}.{folder.name}"
    init = folder / "__init__.py"
    own = [member for member in public_names(init) if member not in reexports(init)]
    parts = [f"# {name}\n", BLOCK.format(name=name, level=2, members=own)]
    if called := reexports(init):
        rows = ["## What notebooks call\n", "| Name | Defined in |", "|---|---|"]
        for member, (file, original) in called.items():
            text = f"`{folder.name}.{member}`"
            if original in public_names(folder / f"{file}.py"):  # not a constant
                text = f"[{text}][{name}.{file}.{original}]"
            rows.append(f"| {text} | `{file}.py` |")
        parts.append("\n".join(rows) + "\n")
    for path in reading_order(folder):
        place = path.relative_to(folder)
        module = ".".join((name, *place.with_suffix("").parts))
        block = BLOCK.format(name=module, level=3, members=public_names(path))
        parts.append(f"## {place.as_posix()}\n\n{block}")
    return "\n".join(parts)


def reading_order(folder: Path) -> list[Path]:
    """Return a subpackage's files in the order of its docstring, then the others."""
    doc = docstring(folder / "__init__.py")

    def place(path: Path) -> tuple[int, str]:
        found = re.search(rf"\b{re.escape(path.stem)}(\.py)?\b", doc)
        return (found.start() if found else len(doc), path.stem)

    return sorted((p for p in folder.rglob("*.py") if p.stem != "__init__"), key=place)


def docstring(path: Path) -> str:
    """Return a module's docstring, "" without one."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def public_names(path: Path) -> list[str]:
    """Return the names of the public functions and classes that a file defines."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    names = [node.name for node in body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def reexports(init: Path) -> dict[str, tuple[str, str]]:
    """Return the file and the name there of each name that a subpackage re-exports."""
    folder, found = init.parent, {}
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        file = (node.module or "").rpartition(".")[2]
        if (folder / f"{file}.py").exists():
            for alias in node.names:
                found[alias.asname or alias.name] = (file, alias.name)
    return dict(sorted(found.items()))
