"""Build the site from the project's texts and the executed notebooks of a run.

    python -m tools.site_build --run runs/latest --out site

Copies the texts to .site/, writes a page there for each notebook and each subpackage,
and calls MkDocs. The copy keeps the repository's folders, so most links stay as they
are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.notebook_addresses import repository_address
from tools.notebook_shape import ANY_BADGE
from tools.notebook_tables import NotebookError, pages
from tools.site_check import problems
from tools.site_notebooks import SiteError, notebook_page
from tools.site_reference import reference_pages

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "bench/*.md")
FILES = ("docs/images/*", "docs/theme/*", "notebooks/images/*", "bench/results/*.png")
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?(?=\))")


def stage(root: Path, run: Path, folder: Path) -> None:
    """Write the sources of all pages to `folder`/pages, and the configuration."""
    address, _ = repository_address(root)
    shutil.rmtree(folder, ignore_errors=True)
    copy = folder / "pages"
    for pattern in (*TEXTS, *FILES):
        for path in sorted(root.glob(pattern)):
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    titles = write_notebooks(root, run, copy / "notebooks", address)
    names = reference_pages(root / "colab_utils")
    (copy / "reference").mkdir()
    for name, text in names.items():
        (copy / "reference" / name).write_text(text, encoding="utf-8")
    for path in [path for pattern in TEXTS for path in copy.glob(pattern)]:
        text = path.read_text(encoding="utf-8")
        text = site_links(text, path.relative_to(copy).parent, root, copy, address)
        if path == copy / "README.md":
            text = f"---\nhide: [navigation]\n---\n\n{text}"
        path.write_text(text, encoding="utf-8")
    write_config(root, folder, address, titles, list(names))


def write_notebooks(
    root: Path, run: Path, folder: Path, address: str
) -> dict[str, str]:
    """Write a page for each notebook to `folder`; returns the titles by page.

    Raises SiteError for a notebook that `run` did not execute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    titles = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        executed = run / path.name
        if not executed.exists():
            raise SiteError(f"{executed} is missing; fix: make run")
        text = notebook_page(executed, folder, address)
        (folder / f"{path.stem}.md").write_text(text, encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        titles[f"notebooks/{path.stem}.md"] = f"{path.name[:2]} {title}"
    return titles


def site_links(text: str, place: Path, root: Path, copy: Path, address: str) -> str:
    """Return a text of the folder `place` with its links changed for the site.

    Links to notebooks lead to their pages, links to files that are not on the site to
    GitHub. Badges become plain links, so that no image comes from another server.
    """

    def replace(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = Path(os.path.normpath(place / target))
        page = path.with_suffix(".md")
        if path.suffix == ".ipynb" and (copy / page).exists():
            return target.removesuffix(".ipynb") + ".md"
        if (copy / path).is_file() or not (root / path).exists():
            return target + anchor  # MkDocs and the check report the ones that break
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"https://github.com/{address}/{kind}/main/{path.as_posix()}{anchor}"

    def plain(badges: re.Match[str]) -> str:
        links = re.findall(r"!\[([^\]]*)\]\([^)]*\)\]\(([^)]*)\)", badges[0])
        return " ".join(f"[{name}]({link})" for name, link in links)

    def own(link: re.Match[str]) -> str:
        page = Path(link[1] or "README.md").with_suffix(".md")
        return os.path.relpath(page, place)

    text = re.sub(re.escape(pages(address)) + r"/([^)\s]*)", own, text)
    return LINK.sub(replace, ANY_BADGE.sub(plain, text))


def write_config(
    root: Path, folder: Path, address: str, titles: dict[str, str], names: list[str]
) -> None:
    """Write MkDocs' configuration: mkdocs.yml, the address and the navigation."""

    reference = [{"Overview": "reference/index.md"}]
    reference += [
        {Path(name).stem: f"reference/{name}"} for name in names if name != "index.md"
    ]
    more = {"T4 leaderboard": "docs/t4-leaderboard.md", "Run on a T4": "docs/t4.md"}
    more |= {"Style": "docs/style.md", "Contributing": "CONTRIBUTING.md"}
    more |= {"Changes": "CHANGELOG.md", "Log of the benchmarks": "bench/LOG.md"}
    there = [{t: p} for t, p in more.items() if (folder / "pages" / p).exists()]
    navigation = [
        {"Home": "README.md"},
        {"Notebooks": [{title: path} for path, title in titles.items()]},
        {"Models": "docs/models.md"},
        {"Large datasets": "docs/data.md"},
        {"Several GPUs": "docs/scale.md"},
        {"Reliability": "docs/reliability.md"},
        {"Benchmarks": "docs/benchmarks.md"},
        {"API": reference},
        {"Project": there},
    ]
    config = {
        "INHERIT": os.path.relpath(root / "mkdocs.yml", folder),
        "docs_dir": "pages",
        "site_url": pages(address) + "/",
        "repo_url": f"https://github.com/{address}",
        "repo_name": address,
        "nav": navigation,
    }
    # JSON is YAML, too.
    (folder / "mkdocs.yml").write_text(json.dumps(config, indent=1), encoding="utf-8")


def build(root: Path, run: Path, out: Path) -> int:
    """Build the site into `out` and check it; returns 1 if anything is wrong."""
    folder = root / ".site"
    try:
        stage(root, run, folder)
    except (SiteError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(folder / "mkdocs.yml"), "--site-dir", str(out)]
    done = subprocess.run(
        command,
        cwd=root,
        stderr=subprocess.STDOUT,
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        return 1
    found = problems(out, sorted((root / "notebooks").glob("*.ipynb")))
    count, size = len(list(out.rglob("*.html"))), sum(map(_size, out.rglob("*")))
    summary = f"site ok: {count} pages, {size / 1e6:.1f} MB in {out}"
    print("\n".join(found) or summary)
    return 1 if found else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def main(arguments: list[str] | None = None) -> int:
    """Build the site as the command line asks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest")
    parser.add_argument("--out", type=Path, default=ROOT / "site")
    options = parser.parse_args(arguments)
    return build(ROOT, options.run.absolute(), options.out.absolute())


if __name__ == "__main__":
    sys.exit(main())
