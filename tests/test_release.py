"""The version of the package, in every file that names it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packaging.version import Version

import colab_utils

ROOT = Path(__file__).resolve().parents[1]
VERSION = colab_utils.__version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def test_version_is_canonical():
    """A tag v1.2.3 then has the same spelling as pip's version 1.2.3."""
    assert str(Version(VERSION)) == VERSION


def test_pyproject_reads_version_from_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    source = project["tool"]["setuptools"]["dynamic"]["version"]
    assert source == {"attr": "colab_utils.__version__"}


def test_citation_has_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [VERSION]


def test_changelog_has_dated_section_and_link_of_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(
        r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE
    )
    assert sections[0] == ("Unreleased", "")
    assert sections[1][0] == VERSION
    versions = [Version(name) for name, _ in sections[1:]]
    assert versions == sorted(set(versions), reverse=True)
    assert all(date for _, date in sections[1:])
    links = re.findall(r"^\[(.+?)\]: https://", text, re.MULTILINE)
    assert links == [name for name, _ in sections]


def test_citation_has_date_of_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    date = re.search(rf"^## \[{re.escape(VERSION)}\] - (.+)$", text, re.MULTILINE)
    assert date
    assert f"date-released: {date[1]}\n" in (ROOT / "CITATION.cff").read_text()
