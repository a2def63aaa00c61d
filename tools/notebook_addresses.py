"""Write the project's address into badges, set-up cells and the README's table.

The address is `owner/repository` on GitHub. A badge opens a notebook from the branch
main, on Colab or on Kaggle. The notebook's set-up cell installs the package from the
tag of the version that the notebook was written for.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools.notebook_shape import ANY_BADGE, tags
from tools.notebook_tables import (
    BADGE,
    TABLE,
    NotebookError,
    overview,
    pages,
    set_table,
)

# The address until the project has one. Nobody else can take it, and run code in a
# reader's notebook: a name on GitHub cannot end in a hyphen.
PLACEHOLDER = "free-gpu-llama-/course"

# The first code cell of every notebook. Colab folds it to its title, Kaggle hides it.
SETUP = """\
# @title Set-up: installs what Colab or Kaggle lacks (half a minute); nothing elsewhere
import importlib.util
import os
import re
import subprocess
import sys

COURSE = "git+https://github.com/{address}@v{version}"
if {{"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}} & os.environ.keys():
    if importlib.util.find_spec("colab_utils") is None:
        if "-/" in COURSE:
            raise RuntimeError(
                "This copy of the course has no address yet: its owner must run "
                "`make badges` in a clone, then commit."
            )
        command = [sys.executable, "-m", "pip", "install", "--no-deps", COURSE]
        ask_nobody = {{**os.environ, "GIT_TERMINAL_PROMPT": "0"}}
        done = subprocess.run(command, env=ask_nobody, capture_output=True, text=True)
        if re.search("unable to access|from versions: none", done.stderr):
            raise RuntimeError(
                "No network: GitHub or PyPI cannot be reached. Check it, then run this "
                "cell again. On Kaggle: verify your phone, turn on Settings > Internet."
            )
        if re.search("git .* did not run", done.stderr):
            raise RuntimeError(
                f"pip cannot find {{COURSE}}: check that this repository is public and "
                "has this tag."
            )
        if done.returncode:
            raise RuntimeError(f"pip cannot install {{COURSE}}: {{done.stderr[-900:]}}")
    from colab_utils import install

    install.missing()"""

COLAB_LINK = re.compile(
    r"colab\.research\.google\.com/github/"
    r"([\w.-]+/[\w.-]+)/blob/([\w.-]+)/([^\s)\"'#?]+\.ipynb)"
)
ADDRESS = re.compile(
    r"(https://github\.com/|https://raw\.githubusercontent\.com/"
    r"|colab\.research\.google\.com/github/)([\w.-]+/[\w.-]*[\w-])"
)
PAGES = re.compile(r"https://([\w-]+)\.github\.io/([\w.-]*[\w-])")
VERSION = re.compile(r'^__version__ = "([\w.]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """The repository (`owner/name` on GitHub) and the package's version."""

    address: str
    version: str


def package_version(root: Path) -> str:
    """Return the package's version from its source; NotebookError if there is none."""
    path = root / "colab_utils" / "__init__.py"
    found = VERSION.search(path.read_text(encoding="utf-8")) if path.exists() else None
    if not found:
        raise NotebookError(
            'colab_utils/__init__.py: no version; fix: write __version__ = "1.2.3"'
        )
    return found[1]


def repository_address(root: Path) -> tuple[str, str]:
    """Return `owner/repository` on GitHub, and where that was found.

    The git remote `origin` comes first if it is on GitHub, then pyproject.toml.
    """
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        remote = _git(root, "config", "--get", "remote.origin.url")
    except FileNotFoundError:  # no git on this machine
        top = remote = ""
    # A copy inside another repository must not take the outer repository's address.
    if top and Path(top).resolve() == root.resolve():
        found = re.fullmatch(
            r"(?:(?:https|ssh|git)://)?(?:[^@/]+@)?github\.com[:/]"
            r"([\w.-]+/[\w.-]+?)(?:\.git)?/?",
            remote,
        )
        if found:
            return found[1], "the git remote origin"
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(
        r'^Repository *= *"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?"',
        project,
        re.MULTILINE,
    )
    if not found:
        raise NotebookError(
            "pyproject.toml: no GitHub address; fix: write Repository = "
            '"https://github.com/owner/name" under [project.urls]'
        )
    return found[1], "pyproject.toml"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def count_addresses(texts: list[str], names: set[str]) -> Counter[str]:
    """Count the addresses in Colab links to notebooks of these names."""
    links = (link for text in texts for link in COLAB_LINK.finditer(text))
    return Counter(link[1] for link in links if Path(link[3]).name in names)


def replace_links(text: str, names: set[str], address: str) -> str:
    """Return the text with every link to this project pointing to `address`."""
    old = set(count_addresses([text], names))

    def replace(link: re.Match[str]) -> str:
        suffix = ".git" if link[2].endswith(".git") else ""
        known = link[2].removesuffix(".git") in old
        return f"{link[1]}{address}{suffix}" if known else link[0]

    def replace_page(link: re.Match[str]) -> str:
        known = link[0].lower() in {pages(known).lower() for known in old}
        return pages(address) if known else link[0]

    return PAGES.sub(replace_page, ADDRESS.sub(replace, text))


def set_address(
    nb: dict, name: str, notebooks: dict[str, dict], release: Release
) -> dict:
    """Return the notebook with badge, set-up cell, links and table of this release.

    A text cell with the lines of `TABLE` gets a table of all notebooks. Raises
    NotebookError if the first cell is not a title.
    """
    nb, names = copy.deepcopy(nb), set(notebooks)
    cells = nb["cells"]
    if not cells or not cells[0]["source"].startswith("# "):
        raise NotebookError(
            f"notebooks/{name}:1: no title; fix: begin with a text cell `# Do this`"
        )
    # Joined, because the badge in one cell shows which links in others are ours.
    mark = "\n\0\n"
    text = mark.join(cell["source"] for cell in cells)
    sources = replace_links(text, names, release.address).split(mark)
    for cell, source in zip(cells, sources, strict=True):
        cell["source"] = TABLE.sub(
            lambda found: found[1] + overview(notebooks, release.address) + found[2],
            source,
        )
    badge = BADGE.format(address=release.address, name=name)
    title, _, rest = cells[0]["source"].partition("\n")
    if ANY_BADGE.search(rest):
        rest = ANY_BADGE.sub(lambda _: badge, rest)
    else:
        rest = "\n".join(["", badge, *([rest] if rest else [])])
    cells[0]["source"] = f"{title}\n{rest}"
    setup = next((cell for cell in cells if "setup" in tags(cell)), None)
    if setup is None:
        setup = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.insert(1, setup)
    hidden = {"cellView": "form", "_kg_hide-input": True}
    setup["metadata"] = {**hidden, "tags": ["setup"]}
    setup["source"] = SETUP.format(address=release.address, version=release.version)
    return nb


def placeholder_problems(address: str) -> list[str]:
    """Return a problem if a repository on GitHub still has the placeholder as address.

    A clone that is not published needs no address: its notebooks run from the clone.
    """
    repository = os.environ.get("GITHUB_REPOSITORY")
    if address != PLACEHOLDER or not repository:
        return []
    return [
        f"README.md and notebooks: the address is {PLACEHOLDER}, a placeholder, so no "
        f"notebook opens or runs on Colab and Kaggle; fix: make badges in a clone of "
        f"{repository}, then commit"
    ]


def address_problems(root: Path, notebooks: dict[str, dict]) -> list[str]:
    """Find badges, links, set-up cells and a table that disagree with each other.

    They need not agree with the git remote, so a fork and a clone of a clone pass.
    """
    path = root / "README.md"
    if not path.exists():
        return ["README.md: missing; fix: write it, then make badges"]
    readme = path.read_text(encoding="utf-8")
    texts = [cell["source"] for nb in notebooks.values() for cell in nb["cells"]]
    found = count_addresses([*texts, readme], set(notebooks)).most_common(1)
    try:
        address = found[0][0] if found else repository_address(root)[0]
        release = Release(address, package_version(root))
        wanted = {
            name: set_address(nb, name, notebooks, release)
            for name, nb in notebooks.items()
        }
        links = replace_links(readme, set(notebooks), address)
        table = set_table(links, wanted, address)
    except NotebookError as error:
        return [str(error)]
    problems = placeholder_problems(address)
    if table != readme:
        problems.append(
            f"README.md: table or link is not the one of {address} and these "
            "notebooks; fix: make badges"
        )
    for name, nb in notebooks.items():
        if len(nb["cells"]) != len(wanted[name]["cells"]):
            problems.append(f"notebooks/{name}: no set-up cell; fix: make badges")
            continue
        pairs = zip(nb["cells"], wanted[name]["cells"], strict=True)
        for number, (cell, want) in enumerate(pairs, start=1):
            if (cell["source"], cell["metadata"]) == (want["source"], want["metadata"]):
                continue
            what = "badge or link" if number == 1 else "link"
            whose = address
            if "setup" in tags(want):
                what, whose = "set-up cell", f"{address} at v{release.version}"
            problems.append(
                f"notebooks/{name}:{number}: {what} is not the one of {whose}; "
                "fix: make badges"
            )
    for place, text in [("README.md", readme)] + [
        (f"notebooks/{name}:{number}", cell["source"])
        for name, nb in notebooks.items()
        for number, cell in enumerate(nb["cells"], start=1)
    ]:
        problems += [
            f"{place}: link to {link[2]}/{link[3]}, which is not in the project; "
            "fix: correct the path"
            for link in COLAB_LINK.finditer(ANY_BADGE.sub("", text))
            if link[1] == address
            if link[2] != "main" or not (root / link[3]).exists()
        ]
    return problems
