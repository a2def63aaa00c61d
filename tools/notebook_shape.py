"""Check the common shape of the notebooks: sections, tags, sizes, parameters, imports.

Each check yields the number of the cell (or None), the problem and the fix.
"""

from __future__ import annotations

import ast
import math
import re
import statistics
from collections.abc import Iterator

OPENING = ["setup", "imports", "parameters"]
CLOSING = ["Summary", "Exercises", "Next"]
CELLS = (20, 60)
MEDIAN_LINES, P90_LINES, MOST_LINES, COLUMNS = 6, 20, 30, 88
PROSE_SHARE = 0.8
MOST_PARAMETERS = 11
ONE_BADGE = r"\[!\[[^\]]*\]\([^)]*(?:colab-badge|open-in-kaggle)\.svg\)\]\([^)]*\)"
# The badges of Colab and Kaggle stand next to each other, in one line.
ANY_BADGE = re.compile(f"{ONE_BADGE}(?: {ONE_BADGE})*")

Finding = tuple[int | None, str, str]


def shape(nb: dict) -> Iterator[Finding]:
    """List everything in which a notebook differs from the common shape."""
    cells = nb["cells"]
    code = [n for n, cell in enumerate(cells, start=1) if cell["cell_type"] == "code"]
    trees = {n: _tree(cells[n - 1]["source"]) for n in code}
    yield from _outline(cells)
    yield from _opening(cells, code)
    yield from _sizes(cells, code)
    yield from _statements(cells, trees)
    tagged = [n for n in code if "parameters" in tags(cells[n - 1])]
    if len(tagged) == 1:
        yield from _parameters(cells[tagged[0] - 1], tagged[0], trees)


def tags(cell: dict) -> list[str]:
    """Return the tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def summary(title_cell: str) -> str:
    """Return the first sentence below title and badge, "" if there is none."""
    for paragraph in title_cell.split("\n\n"):
        text = " ".join(ANY_BADGE.sub("", paragraph).split())
        if text and text[0] not in "#|<>-*!":
            return re.split(r"(?<=[.!?])\s", text)[0]
    return ""


def _tree(source: str) -> ast.Module:
    """Parse a cell, magics translated; returns an empty tree on a syntax error."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:  # ruff names the line
        return ast.Module(body=[], type_ignores=[])


def _headings(cells: list[dict]) -> Iterator[tuple[int, int, str]]:
    """Yield cell, level and text of each markdown heading outside code fences."""
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell["source"], flags=re.M | re.S)
            for heading in re.finditer(r"^(#{1,6}) +(.+?) *$", prose, re.M):
                yield number, len(heading[1]), heading[2]


def _outline(cells: list[dict]) -> Iterator[Finding]:
    headings = list(_headings(cells))
    titles = [number for number, level, _ in headings if level == 1]
    if titles != [1] or not cells[0]["source"].startswith("# "):
        what = f"{len(titles)} H1 titles, but there must be one, in the first line"
        yield 1, what, "begin with one `# Do this`, and use `##` below it"
    elif not summary(cells[0]["source"]):
        what = "no sentence below the title says what the notebook does"
        yield 1, what, "write one"
    sections = [(number, text) for number, level, text in headings if level == 2]
    if [text for _, text in sections][-3:] != CLOSING:
        fix = "end with `## Summary`, `## Exercises`, `## Next`"
        yield len(cells), "does not end as every notebook does", fix
        return
    first, last = sections[-2][0], sections[-1][0]
    text = "\n".join(cell["source"] for cell in cells[first - 1 : last])
    exercises = text.partition("## Exercises")[2].partition("\n## Next")[0]
    items = re.findall(r"^(\d+)\. ", exercises, re.M)
    if items != ["1", "2", "3"]:
        what = f"{len(items)} numbered exercises, not three"
        yield first, what, "number three of them 1. 2. 3."


def _opening(cells: list[dict], code: list[int]) -> Iterator[Finding]:
    for tag in OPENING:
        count = sum(tag in tags(cell) for cell in cells)
        if count != 1:
            what = f"{count} cells are tagged `{tag}`, not one"
            yield None, what, "set the tag in the cell's property panel"
    first = [[tag for tag in OPENING if tag in tags(cells[n - 1])] for n in code[:3]]
    if first != [[tag] for tag in OPENING]:
        what = f"the first three code cells are not {', '.join(OPENING)}"
        yield None, what, "move the cells"


def _sizes(cells: list[dict], code: list[int]) -> Iterator[Finding]:
    if not CELLS[0] <= len(cells) <= CELLS[1]:
        what = f"{len(cells)} cells, not {CELLS[0]} to {CELLS[1]}"
        yield None, what, "split or join cells, or split the notebook"
    lengths = []
    for number in code:
        cell = cells[number - 1]
        if {"setup", "imports"} & set(tags(cell)):
            continue
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        lengths.append(len(lines))
        if len(lines) > MOST_LINES:
            yield number, f"{len(lines)} lines, over {MOST_LINES}", "split the cell"
        # Colab reads a field's choices from its own line, which can't be broken.
        breakable = [line for line in lines if "# @param [" not in line]
        wide = max(map(len, breakable), default=0)
        if wide > COLUMNS:
            yield number, f"a line of {wide} columns, over {COLUMNS}", "break the line"
    if not lengths:
        return
    median = statistics.median(lengths)
    p90 = sorted(lengths)[math.ceil(0.9 * len(lengths)) - 1]
    if median > MEDIAN_LINES:
        what = f"code cells have {median:g} lines in the median, over {MEDIAN_LINES}"
        yield None, what, "split cells"
    if p90 > P90_LINES:
        what = f"a tenth of the code cells have {p90} lines or more, over {P90_LINES}"
        yield None, what, "split cells"
    bare = [n for n in code if n == 1 or cells[n - 2]["cell_type"] != "markdown"]
    if len(code) - len(bare) < PROSE_SHARE * len(code):
        what = f"{len(bare)} of {len(code)} code cells have no text before them"
        yield bare[0], what, f"say why, before {PROSE_SHARE:.0%} of them"


def _statements(cells: list[dict], trees: dict[int, ast.Module]) -> Iterator[Finding]:
    for number, tree in trees.items():
        exempt = {"setup", "imports"} & set(tags(cells[number - 1]))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and not exempt:
                what = f"`{ast.unparse(node)}` is not in the imports cell"
                yield number, what, "move it to the cell tagged `imports`"
            if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
                what = f"`if {ast.unparse(node.test)}:` has a constant condition"
                yield number, what, "run the code or delete it"


def _parameters(
    cell: dict, place: int, trees: dict[int, ast.Module]
) -> Iterator[Finding]:
    lines = cell["source"].splitlines()
    names = []
    for node in trees[place].body:
        line = lines[(node.end_lineno or node.lineno) - 1]
        name = _constant_name(node)
        if name is None:
            yield place, f"`{line}` is not `NAME = literal`", "move it to another cell"
            continue
        names.append(name)
        if not re.search(r"# *@param\b", line):
            yield place, f"{names[-1]} has no form field", "end its line in `# @param`"
        if re.search(r"""# *@param\b.*\btype *: *["']?raw\b""", line):
            what = f"{name} is a raw field, where text without quotes is a NameError"
            yield place, what, "make it a text field, and parse it with `parameters`"
    if len(names) > MOST_PARAMETERS:
        what = f"{len(names)} parameters, over {MOST_PARAMETERS}"
        yield place, what, "keep those that a reader would change"
    read_later = {
        node.id
        for number, tree in trees.items()
        for node in ast.walk(tree)
        if number > place
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    for name in names:
        if name not in read_later:
            yield place, f"no later cell reads {name}", "use it or delete it"


def _constant_name(node: ast.stmt) -> str | None:
    """Return the name in a statement `NAME = literal`, None for any other statement."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            try:
                ast.literal_eval(value)
            except ValueError:
                return None
            return name
    return None
