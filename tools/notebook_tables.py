"""Write the tables of all notebooks: into the README and into the first notebook."""

from __future__ import annotations

import re
from pathlib import Path

from tools.notebook_shape import summary

COLAB = "https://colab.research.google.com/github/{address}/blob/main/notebooks/{name}"
KAGGLE = (
    "https://kaggle.com/kernels/welcome?src="
    "https://github.com/{address}/blob/main/notebooks/{name}"
)
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    f"({COLAB}) "
    "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
    f"({KAGGLE})"
)
TABLE = re.compile(r"(<!-- notebooks -->\n).*?(<!-- /notebooks -->)", re.DOTALL)
FACT = re.compile(r"^\| \*\*(You build|It takes)\*\* \| (.*) \|$", re.MULTILINE)


class NotebookError(ValueError):
    """A file or an address that the tools cannot work with, and what to do."""


def pages(address: str) -> str:
    """Return where GitHub Pages publishes the site of `address`."""
    owner, name = address.split("/")
    return f"https://{owner.lower()}.github.io/{name}"


def overview(notebooks: dict[str, dict], address: str) -> str:
    """Return a table of the notebooks: what the reader builds, and how long it takes.

    Both come from the rows "You build" and "It takes" below each title.
    """
    rows = ["| Notebook | You build | It takes |", "|---|---|---|"]
    for name, nb in notebooks.items():
        facts = dict(FACT.findall(nb["cells"][0]["source"]))
        time = re.split(r"\. (?=[A-Z])", facts.get("It takes", ""))[0].rstrip(".")
        link = COLAB.format(address=address, name=name)
        built = facts.get("You build", "")
        title = f"{Path(name).stem[:2]}: {_title(nb)}"
        rows.append(f"| [{title}]({link}) | {built} | {time} |")
    return "\n".join(rows) + "\n"


def set_table(readme: str, notebooks: dict[str, dict], address: str) -> str:
    """Return the README with its table of notebooks; NotebookError without markers."""
    if not TABLE.search(readme):
        raise NotebookError(
            "README.md: no table of notebooks; fix: write the lines "
            "`<!-- notebooks -->` and `<!-- /notebooks -->`, then make badges"
        )
    rows = ["| Notebook | What it does | Run it | Read it |", "|---|---|---|---|"]
    for name, nb in notebooks.items():
        title, what = _title(nb), summary(nb["cells"][0]["source"]).replace("|", r"\|")
        badge = BADGE.format(address=address, name=name)
        page = f"{pages(address)}/notebooks/{Path(name).stem}.html"
        rows.append(
            f"| [{title}](notebooks/{name}) | {what} | {badge} | [page]({page}) |"
        )
    table = "\n".join(rows) + "\n"
    return TABLE.sub(lambda found: found[1] + table + found[2], readme)


def _title(nb: dict) -> str:
    """Return the title of a notebook, as a cell of a table."""
    first = nb["cells"][0]["source"].partition("\n")[0]
    return first.removeprefix("# ").strip().replace("|", r"\|")
