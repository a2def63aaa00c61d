"""Check the built site: every link and anchor, the size of its pages, all notebooks.

    python -m tools.site_check site

Reads the HTML files only, so it needs no package and no network.
"""

from __future__ import annotations

import argparse
import sys
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 5_000_000  # bytes of one page


class Page(HTMLParser):
    """The links of an HTML page and the anchors that it offers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.loaded: list[tuple[int, str]] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element's id and where it links to."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        line = self.getpos()[0]
        if "href" in given and given.get("rel") not in ("canonical", "preconnect"):
            self.links.append((line, given["href"]))
        if "src" in given:
            self.links.append((line, given["src"]))
        if tag in ("script", "img", "iframe") and "src" in given:
            self.loaded.append((line, given["src"]))
        if tag == "link" and given.get("rel") == "stylesheet":
            self.loaded.append((line, given["href"]))


class Site:
    """A folder of HTML pages that link to each other by relative paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @cached_property
    def pages(self) -> dict[Path, Page]:
        """Return the parsed pages by their path."""
        paths = sorted(self.folder.rglob("*.html"))
        return {path: Page(path.read_text(encoding="utf-8")) for path in paths}

    def broken(self, path: Path, link: str) -> str:
        """Return what is wrong with a link of the page `path`, "" if nothing is."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            return ""  # another server's page; the check works without a network
        target = path
        if parts.path:
            target = (path.parent / unquote(parts.path)).resolve()
            if parts.path.startswith("/"):
                return "starts at the server's root, which is not the site's"
            if target.is_dir():
                target /= "index.html"
        if not target.is_file() or not target.is_relative_to(self.folder):
            return "leads to no file of the site"
        anchor = unquote(parts.fragment)
        if anchor and target in self.pages and anchor not in self.pages[target].anchors:
            return f"{target.relative_to(self.folder)} has no anchor {anchor!r}"
        return ""


def problems(folder: Path, notebooks: list[Path]) -> list[str]:
    """Return every problem of the site as `page:line: what; fix: how`."""
    site, found = Site(folder), []
    if not site.pages:
        return [f"{folder}: no pages; fix: make site"]
    for path, page in site.pages.items():
        place = path.relative_to(site.folder)
        if place.name == "404.html":  # its links are absolute, for any address
            continue
        for line, link in page.links:
            if what := site.broken(path, link):
                found.append(f"{place}:{line}: {link} {what}; fix: correct the link")
        for line, link in page.loaded:
            if urlsplit(link).netloc:
                fix = "keep the file in docs/images"
                found.append(f"{place}:{line}: loads {link} from a server; fix: {fix}")
        if (size := path.stat().st_size) > LIMIT:
            what = f"{size:,} bytes, but a page must not exceed {LIMIT:,}"
            found.append(f"{place}: {what}; fix: print less, or smaller figures")
    for notebook in notebooks:
        page_of = site.folder / "notebooks" / f"{notebook.stem}.html"
        if page_of not in site.pages:
            found.append(f"notebooks/{page_of.name}: missing; fix: make run, make site")
        elif 'class="nb-output"' not in page_of.read_text(encoding="utf-8"):
            found.append(f"notebooks/{page_of.name}: shows no output; fix: make run")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the problems of a site; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder with the built site")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    options = parser.parse_args(arguments)
    notebooks = sorted((options.root / "notebooks").glob("*.ipynb"))
    found = problems(options.site, notebooks)
    print("\n".join(found) or f"site ok: {len(Site(options.site).pages)} pages")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
