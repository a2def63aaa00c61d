"""The package as Colab installs it: built as a wheel, used without the sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import import_package

import colab_utils

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "colab_utils"
PROGRAM = Path(import_package.__file__)

pytestmark = pytest.mark.slow


def pip(*arguments: str) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments],
        env=os.environ | {"PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Install the package's wheel into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes build/ and *.egg-info into the sources.
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "colab_utils", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-build-isolation")
    pip("wheel", *offline, "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    pip("install", "--no-deps", "--target", str(folder / "site"), str(wheel))
    return folder / "site"


@pytest.fixture(scope="module")
def report(site) -> dict:
    """Import all modules and read all data from the installed wheel."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_wheel_contains_only_the_package(site):
    names = {path.name for path in site.iterdir()}
    version = colab_utils.__version__
    assert names == {"colab_utils", f"colab_utils-{version}.dist-info"}


def test_wheel_has_version_license_and_requirements(site):
    (found,) = metadata.distributions(path=[str(site)])
    assert found.metadata["Name"] == "colab_utils"
    assert found.version == colab_utils.__version__
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert "torch>=2.11" in (found.requires or [])
    assert any(str(file).endswith("LICENSE") for file in found.files or [])


def test_all_modules_import_from_wheel(site, report):
    """Modules for Triton are skipped where Triton has no build (macOS, Windows)."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert set(report["modules"]) | set(report["skipped"]) == names
    assert all(Path(file).is_relative_to(site) for file in report["modules"].values())
    if report["skipped"]:
        print("skipped:", report["skipped"])
    assert report["version"] == colab_utils.__version__


def test_all_data_is_in_wheel(report):
    assert report["data"] == import_package.hash_data(PACKAGE)
    assert {"py.typed", "demo/facts.csv", "demo/words.txt"} <= set(report["data"])
    assert report["demo"] == import_package.read_demo()
    assert all(report["demo"].values())
