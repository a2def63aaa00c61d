"""Write an executed notebook as a Markdown page of the site, with its figures as files.

Text becomes HTML by the rules of CommonMark, which GitHub and Colab follow too; only
headings stay Markdown, so that MkDocs finds them for its table of contents.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.notebook_addresses import COLAB_LINK
from tools.notebook_shape import ANY_BADGE, tags
from tools.notebook_tables import COLAB, KAGGLE

HEADING = re.compile(r"#{1,6} ")
FENCE = re.compile(r" {0,3}(```+|~~~+)")
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)
WIDGET = "application/vnd.jupyter.widget-view+json"
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
COLLAPSED = {"setup": "Set-up", "imports": "Imports"}


class SiteError(ValueError):
    """A reason why the site cannot be built or is not complete, and what to do."""


def read_executed(path: Path) -> dict[str, Any]:
    """Return the notebook; SiteError if one of its cells did not run or failed."""
    nb: dict[str, Any] = json.loads(path.read_bytes())
    for number, cell in enumerate(nb["cells"], start=1):
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        failed = any(out["output_type"] == "error" for out in cell["outputs"])
        if failed or (cell["source"].strip() and cell["execution_count"] is None):
            what = "failed" if failed else "did not run"
            raise SiteError(f"{path}: cell {number} {what}; fix: make run")
    return nb


def notebook_page(path: Path, folder: Path, address: str) -> str:
    """Return the page's Markdown; the figures go to `folder`/<notebook's name>/.

    `address` is owner/repository on GitHub, for the link to Colab.
    """
    nb = read_executed(path)
    figures = Figures(folder / path.stem)
    # Paths of the machine that ran the notebook are useless to a reader.
    here = str(path.parent.resolve()) + "/"
    parts = []
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            source = figures.attached(cell)
            parts.append(text_cell(source, path.name, address))
            figures.section = last_heading(source) or figures.section
        elif cell["cell_type"] == "code" and cell["source"].strip():
            outputs = [output(out, figures) for out in cell["outputs"]]
            shown = "".join(merge_streams(outputs)).replace(here, "")
            parts.append(code_cell(cell, shown))
    return "\n\n".join(parts) + "\n"


class Figures:
    """Writes a notebook's figures as numbered files into its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.section = folder, 0, "the notebook"

    def write(self, kind: str, data: str) -> str:
        """Write one figure of the MIME type `kind`; returns its address on the page."""
        self.count += 1
        suffix = IMAGES[kind]
        raw = data.encode() if suffix == "svg" else base64.b64decode(data)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.count}.{suffix}").write_bytes(raw)
        return f"{self.folder.name}/{self.count}.{suffix}"

    def show(self, kind: str, data: str) -> str:
        """Write one figure; returns the `<img>` that shows it."""
        source = self.write(kind, data)
        alt = html.escape(f"Figure {self.count}, section: {self.section}")
        return f'<img src="{source}" alt="{alt}" loading="lazy">\n'

    def attached(self, cell: dict[str, Any]) -> str:
        """Write the images attached to a text cell; returns its text with links."""
        text: str = cell["source"]
        for name, bundle in cell.get("attachments", {}).items():
            ((kind, data),) = bundle.items()
            text = text.replace(f"attachment:{name}", self.write(kind, joined(data)))
        return text


def last_heading(source: str) -> str:
    """Return the text of the cell's last heading, or ""."""
    found = [line for line in source.splitlines() if HEADING.match(line)]
    return re.sub(r"[*`]", "", found[-1].lstrip("#").strip()) if found else ""


def text_cell(source: str, name: str, address: str) -> str:
    """Return a text cell: headings as Markdown, all else as HTML.

    The badges become buttons without an image from another server; other links to
    this repository's notebooks lead to their pages of the site.
    """
    button = " ".join(
        f'<a class="md-button" href="{link.format(address=address, name=name)}">'
        f"Open in {place}</a>"
        for place, link in (("Colab", COLAB), ("Kaggle", KAGGLE))
    )
    texts = (page_links(part, address) for part in ANY_BADGE.split(source))
    parts, fence = [""], ""
    for line in button.join(texts).splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if not fence and HEADING.match(line):
            parts += [line.rstrip(), ""]
        else:
            parts[-1] += line
    render = markdown_renderer()
    return "\n\n".join(
        part if HEADING.match(part) else f'<div class="nb-text">\n{render(part)}</div>'
        for part in parts
        if part.strip()
    )


def page_links(text: str, address: str) -> str:
    """Let links to notebooks and images of this repository stay on the site."""

    def replace(link: re.Match[str]) -> str:
        own = link[1] == address
        return Path(link[3]).with_suffix(".html").name if own else link[0]

    text = text.replace(f"https://raw.githubusercontent.com/{address}/main/", "../")
    return re.sub("https://" + COLAB_LINK.pattern, replace, text)


def markdown_renderer() -> Callable[[str], str]:
    """Return a function from CommonMark with tables and formulas to HTML (MathML)."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(tex: str, options: dict[str, Any]) -> str:
        display = "block" if options["display_mode"] else "inline"
        return str(convert(tex, display=display))

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, renderer=formula, allow_digits=False)
    return parser.render


def code_cell(cell: dict[str, Any], outputs: str) -> str:
    """Return code and outputs; set-up and imports are collapsed."""
    code = f"````python\n{cell['source'].rstrip()}\n````"
    for tag, title in COLLAPSED.items():
        if tag in tags(cell):
            indented = "\n".join(
                "    " + line if line else "" for line in code.split("\n")
            )
            code = f'??? note "{title}"\n\n{indented}'
    return f'{code}\n\n<div class="nb-output">\n{outputs}</div>' if outputs else code


def output(out: dict[str, Any], figures: Figures) -> str:
    """Return one output as HTML: a table or a figure if there is one, else the text."""
    if out["output_type"] == "stream":
        return text_output("".join(out["text"]))
    data = {kind: joined(value) for kind, value in out["data"].items()}
    if WIDGET in data:  # a progress bar or a widget, which needs a running kernel
        return ""
    if "text/html" in data:
        body = STYLE.sub("", data["text/html"])
        return f'<div class="nb-html">\n{body}\n</div>\n'
    for kind in IMAGES:
        if kind in data:
            return figures.show(kind, data[kind])
    if "text/markdown" in data:
        return markdown_renderer()(data["text/markdown"])
    return text_output(data.get("text/plain", "") + "\n")


def joined(value: Any) -> str:
    """Return an output's data as one string; notebooks may keep a list of lines."""
    return "".join(value) if isinstance(value, list) else str(value)


def text_output(text: str) -> str:
    """Return printed text as a terminal shows it: the last state of a progress line."""
    lines = ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    return f"<pre>{html.escape(chr(10).join(lines), quote=False)}</pre>\n"


def merge_streams(outputs: list[str]) -> list[str]:
    """Join printed texts that follow each other, as one box instead of many."""
    merged: list[str] = []
    for text in outputs:
        if merged and merged[-1].endswith("</pre>\n") and text.startswith("<pre>"):
            text = merged.pop().removesuffix("</pre>\n") + text.removeprefix("<pre>")
        if text:
            merged.append(text)
    return merged
