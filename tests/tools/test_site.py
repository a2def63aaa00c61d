"""The site: pages of executed notebooks, the API reference, and the check of links."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from tools import notebook_addresses as addresses
from tools import notebook_tables as tables
from tools import site_build, site_check, site_notebooks, site_reference

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "someone/course"
PIXEL = base64.b64encode(b"a figure").decode()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A sound site of a home page and one executed notebook."""
    folder = tmp_path / "site"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01_x.html").write_text(
        '<h2 id="train">Train</h2><div class="nb-output"><pre>1</pre></div>'
    )
    (folder / "index.html").write_text(
        '<a href="notebooks/01_x.html#train">x</a> <a href="https://a.org/#b">y</a>'
        '<a href="#top">z</a><p id="top"><img src="figure.png">'
    )
    (folder / "figure.png").write_bytes(b"")
    return folder


def found(site: Path) -> list[str]:
    return site_check.problems(site, [Path("notebooks/01_x.ipynb")])


def plant(site: Path, html: str) -> list[str]:
    """Add this HTML to the home page, and return the problems."""
    with (site / "index.html").open("a") as file:
        file.write(html)
    return found(site)


def test_problems_of_a_sound_site(site: Path) -> None:
    assert found(site) == []


@pytest.mark.parametrize(
    ("html", "what"),
    [
        ('<a href="notebooks/02_x.html">', "leads to no file"),
        ('<a href="notebooks/01_x.html#traim">', "has no anchor 'traim'"),
        ('<a href="#traim">', "has no anchor 'traim'"),
        ('<img src="missing.png">', "leads to no file"),
        ('<link rel="stylesheet" href="missing.css">', "leads to no file"),
        ('<a href="../outside.html">', "leads to no file of the site"),
        ('<a href="/course/index.html">', "starts at the server's root"),
        ('<script src="https://cdn.org/x.js"></script>', "from a server"),
        ('<img src="https://cdn.org/badge.svg">', "from a server"),
    ],
)
def test_problems_of_a_broken_link(site: Path, html: str, what: str) -> None:
    (site.parent / "outside.html").write_text("")
    problems = plant(site, html)
    assert len(problems) == 1
    assert what in problems[0] and "; fix: " in problems[0]
    assert problems[0].startswith("index.html:1: ")


def test_problems_of_a_page_over_5_mb(site: Path) -> None:
    assert plant(site, "x" * 4_900_000) == []
    (problem,) = plant(site, "x" * 100_000)
    assert "must not exceed 5,000,000" in problem


def test_problems_of_a_notebook_without_page(site: Path) -> None:
    (site / "index.html").write_text("")
    (site / "notebooks" / "01_x.html").unlink()
    assert found(site) == ["notebooks/01_x.html: missing; fix: make run, make site"]


def test_problems_of_a_notebook_without_outputs(site: Path) -> None:
    (site / "notebooks" / "01_x.html").write_text('<h2 id="train">Train</h2>')
    assert found(site) == ["notebooks/01_x.html: shows no output; fix: make run"]


def test_problems_of_an_empty_folder(tmp_path: Path) -> None:
    assert found(tmp_path) == [f"{tmp_path}: no pages; fix: make site"]


def test_main_exit_code(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site.parent / "notebooks").mkdir()
    arguments = [str(site), "--root", str(site.parent)]
    assert site_check.main(arguments) == 0
    assert capsys.readouterr().out == "site ok: 2 pages\n"
    plant(site, '<a href="gone.html">')
    assert site_check.main(arguments) == 1
    assert "gone.html leads to no file" in capsys.readouterr().out


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executed notebook with each kind of output."""
    badge = tables.BADGE.format(address=ADDRESS, name="01_x.ipynb")
    colab = tables.COLAB.format(address=ADDRESS, name="02_y.ipynb")
    table = "<style scoped>td {}</style><table><tr><td>4</td></tr></table>"
    widget = {site_notebooks.WIDGET: {"model_id": "1"}, "text/plain": "a bar"}
    outputs = [
        new_output("stream", name="stdout", text=f"saved to {tmp_path}/workspace\n"),
        new_output("stream", name="stderr", text="10%\r100% of 1 < 2\n"),
        new_output("display_data", data={"text/html": table, "text/plain": "four"}),
        new_output("display_data", data={"image/png": PIXEL, "text/plain": "<F>"}),
        new_output("display_data", data=widget),
        new_output("execute_result", data={"text/plain": "'plain'"}),
    ]
    nb = new_notebook(
        cells=[
            new_markdown_cell(
                f"# Build\n\n{badge}\n\nText.\n\n## Train\n\n[on]({colab})"
            ),
            new_code_cell("import os", metadata={"tags": ["imports"]}),
            new_code_cell("run()", outputs=outputs),
        ]
    )
    for number, cell in enumerate(nb.cells[1:], start=1):
        cell.execution_count = number
    path = tmp_path / "01_x.ipynb"
    nbformat.write(nb, path)
    # The environment of the site has a renderer of Markdown, that of the course not.
    monkeypatch.setattr(site_notebooks, "markdown_renderer", lambda: str)
    return path


def test_notebook_page(executed: Path, tmp_path: Path) -> None:
    """Headings stay Markdown, all else is HTML; each output in its best form."""
    page = site_notebooks.notebook_page(executed, tmp_path / "out", ADDRESS)
    assert page.startswith("# Build\n\n<div")
    assert "\n\n## Train\n\n<div" in page
    assert '??? note "Imports"\n\n    ````python\n    import os' in page
    assert "````python\nrun()\n````" in page
    # Two texts that follow each other: one box, escaped, the line's last state.
    assert "<pre>saved to workspace\n100% of 1 &lt; 2\n</pre>" in page
    assert "<table><tr><td>4</td></tr></table>" in page
    assert "four" not in page and "<style" not in page
    assert "a bar" not in page
    assert "<pre>'plain'\n</pre>" in page
    assert '<img src="01_x/1.png" alt="Figure 1, section: Train"' in page
    assert (tmp_path / "out" / "01_x" / "1.png").read_bytes() == b"a figure"


def test_notebook_page_links(executed: Path, tmp_path: Path) -> None:
    """The badges lead to Colab and Kaggle, without images; other links to the site."""
    page = site_notebooks.notebook_page(executed, tmp_path / "out", ADDRESS)
    colab = tables.COLAB.format(address=ADDRESS, name="01_x.ipynb")
    kaggle = tables.KAGGLE.format(address=ADDRESS, name="01_x.ipynb")
    assert f'<a class="md-button" href="{colab}">Open in Colab</a>' in page
    assert f'<a class="md-button" href="{kaggle}">Open in Kaggle</a>' in page
    assert "[on](02_y.html)" in page
    assert ".svg" not in page
    other = site_notebooks.notebook_page(executed, tmp_path / "out", "else/course")
    assert "[on](https://colab.research.google.com/github/someone/" in other


def test_notebook_page_images(executed: Path, tmp_path: Path) -> None:
    """An attached image becomes a file; an image of the repository is on the site."""
    nb = json.loads(executed.read_text())
    raw = f"https://raw.githubusercontent.com/{ADDRESS}/main/docs/images/p.svg"
    nb["cells"][0] |= {
        "source": f"# Build\n\n![a](attachment:a.png) ![b]({raw})",
        "attachments": {"a.png": {"image/png": PIXEL}},
    }
    executed.write_text(json.dumps(nb))
    page = site_notebooks.notebook_page(executed, tmp_path / "out", ADDRESS)
    assert "![a](01_x/1.png) ![b](../docs/images/p.svg)" in page
    assert (tmp_path / "out" / "01_x" / "1.png").read_bytes() == b"a figure"


@pytest.mark.parametrize("fault", ["did not run", "failed"])
def test_notebook_page_not_executed(executed: Path, tmp_path: Path, fault: str) -> None:
    nb = json.loads(executed.read_text())
    if fault == "failed":
        nb["cells"][2]["outputs"].append({"output_type": "error"})
    else:
        nb["cells"][2]["execution_count"] = None
    executed.write_text(json.dumps(nb))
    with pytest.raises(
        site_notebooks.SiteError, match=f"cell 3 {fault}; fix: make run"
    ):
        site_notebooks.notebook_page(executed, tmp_path / "out", ADDRESS)


def test_text_cell_heading_in_a_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment in a block of code is not a heading."""
    monkeypatch.setattr(site_notebooks, "markdown_renderer", lambda: str)
    page = site_notebooks.text_cell("```\n# no\n```\n## Yes\n", "01_x.ipynb", ADDRESS)
    assert page == '<div class="nb-text">\n```\n# no\n```\n</div>\n\n## Yes'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a module and a subpackage, which would fail if it was imported."""
    folder = tmp_path / "pack" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text('"""A package."""')
    (folder.parent / "runtime.py").write_text('"""The machine."""\ndef detect(): ...\n')
    (folder / "__init__.py").write_text(
        '"""Weights on disk.\n\nRead shards.py, then merging.py."""\n'
        "from .merging import SCALE, merge\n"
        "from pack.weights.shards import find as search\n"
        '__all__ = ["merge", "search"]\nraise RuntimeError\n'
    )
    (folder / "arch").mkdir()
    (folder / "arch" / "__init__.py").write_text("")
    (folder / "arch" / "llama.py").write_text("def names(): ...\n")
    (folder / "merging.py").write_text("def merge(): ...\ndef _hidden(): ...\n")
    (folder / "shards.py").write_text("def find(): ...\nclass Shard: ...\n")
    return folder.parent


def test_reference_pages(package: Path) -> None:
    """A page names what notebooks call, then the files in their reading order."""
    pages = site_reference.reference_pages(package)
    assert list(pages) == ["index.md", "runtime.md", "weights.md"]
    assert "| [`pack.weights`](weights.md) | Weights on disk. |" in pages["index.md"]
    assert "members: ['detect']" in pages["runtime.md"]
    page = pages["weights.md"]
    assert "| [`weights.merge`][pack.weights.merging.merge] | `merging.py` |" in page
    assert "| `weights.SCALE` | `merging.py` |" in page
    assert "| [`weights.search`][pack.weights.shards.find] | `shards.py` |" in page
    assert page.index("## shards.py") < page.index("## merging.py")
    assert "members: ['find', 'Shard']" in page
    assert "## arch/llama.py\n\n::: pack.weights.arch.llama\n" in page
    assert "_hidden" not in page


@pytest.mark.slow
def test_reference_pages_cover_the_package() -> None:
    """No module of the package is left out of the reference."""
    text = "\n".join(site_reference.reference_pages(ROOT / "colab_utils").values())
    for path in (ROOT / "colab_utils").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            assert f"::: {module}\n" in text, module


def test_site_links(tmp_path: Path) -> None:
    """Links to pages stay; those to other files of the repository lead to GitHub."""
    copy = tmp_path / "copy"
    for folder, name in [
        (tmp_path, "LICENSE"),
        (tmp_path, "bench/results/speed.json"),
        (copy, "docs/style.md"),
        (copy, "notebooks/01_x.md"),
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    badge = tables.BADGE.format(address=ADDRESS, name="01_x.ipynb")
    colab = tables.COLAB.format(address=ADDRESS, name="01_x.ipynb")
    kaggle = tables.KAGGLE.format(address=ADDRESS, name="01_x.ipynb")
    home = tables.pages(ADDRESS)
    text = (
        f"[a](docs/style.md#words) [b](notebooks/01_x.ipynb) [c](LICENSE) {badge} "
        f"[d]({home}/notebooks/01_x.html) [e](gone.md) [f]({home}/) [g](bench/results)"
    )
    assert site_build.site_links(text, Path("."), tmp_path, copy, ADDRESS) == (
        "[a](docs/style.md#words) [b](notebooks/01_x.md) "
        "[c](https://github.com/someone/course/blob/main/LICENSE) "
        f"[Open in Colab]({colab}) [Open in Kaggle]({kaggle}) "
        "[d](notebooks/01_x.md) [e](gone.md) [f](README.md) "
        "[g](https://github.com/someone/course/tree/main/bench/results)"
    )
    below = site_build.site_links(
        f"[a](../LICENSE) [b]({home}/notebooks/01_x.html)",
        Path("docs"),
        tmp_path,
        copy,
        ADDRESS,
    )
    assert below == (
        "[a](https://github.com/someone/course/blob/main/LICENSE) "
        "[b](../notebooks/01_x.md)"
    )


def test_stage_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(site_notebooks.SiteError, match=r"is missing; fix: make run"):
        site_build.stage(ROOT, tmp_path / "no-run", tmp_path / "staged")


def test_badges_point_pages_to_a_fork() -> None:
    """`make badges` also changes the addresses of rendered pages."""
    colab = tables.COLAB.format(address=ADDRESS, name="01_x.ipynb")
    text = f"{colab} {tables.pages(ADDRESS)}/ https://other.github.io/course/"
    moved = addresses.replace_links(text, {"01_x.ipynb"}, "Fork/Mine")
    assert moved.endswith(
        "https://fork.github.io/Mine/ https://other.github.io/course/"
    )
