"""The fixtures of the tests on a double of Colab's and Kaggle's machines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import hosted

MARK = ".made-by-the-tests"  # in a working folder that the tests may remove


@pytest.fixture(scope="session", autouse=True)
def image() -> Path:
    """The packages of Colab's image, which `make colab-double` installs."""
    folder = hosted.DOUBLE / "image"
    if not folder.is_dir():
        pytest.exit("There is no double of Colab's image: run make colab-double", 1)
    return folder


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Path:
    """A published copy of this project."""
    return hosted.publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(params=hosted.PLACES, ids=lambda place: place.name)
def place(request) -> hosted.Place:
    return request.param


@pytest.fixture
def new_machine(course) -> Iterator[Callable[..., hosted.Machine]]:
    """Return a function that makes a machine, which is removed after the test."""
    homes, places = [], []

    def new(
        place: hosted.Place, repository: str | None = None, **variables: str
    ) -> hosted.Machine:
        empty(place)
        places.append(place)
        homes.append(Path(tempfile.mkdtemp(dir=hosted.DOUBLE, prefix="machine-")))
        return hosted.Machine(place, homes[-1], repository or str(course), variables)

    yield new
    for folder in homes:
        shutil.rmtree(folder)
    for place in places:
        clear(place)
    if hosted.KAGGLE in places:
        shutil.rmtree(hosted.KAGGLE_INPUTS / "somebody", ignore_errors=True)


def clear(place: hosted.Place) -> None:
    """Remove the working folder of a machine, if a test has made it."""
    if (place.folder / MARK).exists():
        shutil.rmtree(place.folder)


def empty(place: hosted.Place) -> None:
    """Make the working folder of a new machine; leave one alone that is in use."""
    clear(place)
    if place.folder.is_dir() and any(place.folder.iterdir()):
        pytest.exit(f"{place.folder} has files: these tests need it empty", 1)
    place.folder.mkdir(parents=True, exist_ok=True)
    (place.folder / MARK).touch()
