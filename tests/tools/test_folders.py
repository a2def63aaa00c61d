"""Folders named by the time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.folders import new_folder


@pytest.mark.slow
def test_runs_in_one_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs", "t4-"), range(3)))
    assert len(set(made)) == 3
    assert all(path.is_dir() and path.name.startswith("t4-2") for path in made)


def test_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        new_folder(tmp_path / "file")
