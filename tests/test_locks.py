"""Two processes that write the same thing at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from colab_utils import data, locks, training, weights
from colab_utils.data import saving
from colab_utils.data.schema import Row
from colab_utils.evaluation import reports
from colab_utils.training import checkpoints

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows nothing is locked"
)
ROOT = Path(__file__).parents[1]
START = "import sys, time\nfrom pathlib import Path\nfrom colab_utils import locks\n"
HOLD = START + (
    "with locks.locked(Path(sys.argv[1])):\n"
    "    print('locked', flush=True)\n"
    "    time.sleep(60)\n"
)
# Adds 1 to a number in a file, 100 times, whenever nobody else does.
COUNT = START + (
    "path, left = Path(sys.argv[1]), 100\n"
    "while left:\n"
    "    try:\n"
    "        with locks.locked(path):\n"
    "            path.write_text(str(int(path.read_text()) + 1))\n"
    "            left -= 1\n"
    "    except RuntimeError:\n"
    "        time.sleep(0.0005)\n"
)


def start(code: str, path: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def hidden(path: Path) -> list[str]:
    return [one.name for one in path.parent.iterdir() if one.name.startswith(".")]


def test_lock_of_another_process_ends_with_it_even_if_it_is_killed(tmp_path):
    path = tmp_path / "new" / "mine"
    with start(HOLD, path) as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        with pytest.raises(RuntimeError, match="Another process is writing into"):
            locks.locked(path).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert hidden(path) == [".mine.lock"]  # the killed process has left it
    with locks.locked(path):
        pass
    assert hidden(path) == []


def test_lock_of_another_name_is_free(tmp_path):
    with locks.locked(tmp_path / "a"), locks.locked(tmp_path / "b"):
        pass


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.locked(tmp_path / "a"):
        _ = 1 / 0
    with locks.locked(tmp_path / "a"):
        pass


@pytest.mark.slow
def test_three_processes_that_take_turns_lose_nothing(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    processes = [start(COUNT, path) for _ in range(3)]
    for process in processes:
        with process:
            assert process.wait(timeout=120) == 0
    assert path.read_text() == "300" and hidden(path) == []


def test_disk_that_cannot_lock_is_told(tmp_path, monkeypatch, capsys):
    import fcntl

    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.locked(tmp_path / "a"):
        pass
    assert "a can't be locked (No locks available): let no" in capsys.readouterr().out


def refused():
    return pytest.raises(RuntimeError, match="Another process is writing into")


def test_dataset_that_another_process_saves_is_refused(tmp_path):
    rows = [Row(messages=data.to_messages({"question": "Q", "answer": "A"}), line=1)]
    files = {"train": rows, "test": rows}
    folder = tmp_path / "mine"
    data.save(folder, files, [], card="first")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with locks.locked(folder), refused():
        data.save(folder, files, [], card="second")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_gguf_that_another_process_writes_is_refused(llama_folder, tmp_path):
    out = tmp_path / "mine.gguf"
    with locks.locked(out), refused():
        weights.write_gguf(llama_folder, out)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def llama_folder(trained) -> Path:
    return trained["full"][1]


@pytest.mark.slow
def test_adapter_that_another_process_saves_is_refused(trained, tokenizer, tmp_path):
    with locks.locked(tmp_path / "mine"), refused():
        training.save(trained["lora"][0], tokenizer, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_report_that_another_process_writes_is_refused(tmp_path):
    with locks.locked(tmp_path / "mine"), refused():
        reports.save(tmp_path / "mine", {}, "text", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_second_training_of_one_name_is_refused(make_trainer, headless, tmp_path):
    """It would set the checkpoints of the first one aside, and write among them."""
    folder = tmp_path / "mine" / "checkpoints"
    found: list[str] = []

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            other = make_trainer("qlora", max_steps=1, output_dir=str(folder))
            training.show_progress(other)
            for begin in (
                lambda: training.resume_point(folder, {"rank": 9}),
                other.train,
            ):
                with refused():
                    begin()
                found.append("refused")

    training.resume_point(folder, {"rank": 8})
    trainer = make_trainer("qlora", max_steps=1, output_dir=str(folder))
    training.float32_adapters(trainer)
    training.show_progress(trainer, save_minutes=0)
    trainer.add_callback(Second())
    trainer.train()
    assert found == ["refused", "refused"]
    assert [one.name for one in checkpoints.numbered(folder)] == ["checkpoint-1"]
    assert training.resume_point(folder, {"rank": 8}) == str(folder / "checkpoint-1")


def disconnect(folder: Path, then: str) -> None:
    """Move a folder away, as if its disk was gone; "again" makes an empty one."""
    folder.rename(folder.with_name("away"))
    if then == "again":
        folder.mkdir()


@pytest.mark.parametrize("then", ["gone", "again"])
def test_disk_that_disappears_while_a_result_is_written_is_told(tmp_path, then):
    drive = tmp_path / "drive"
    drive.mkdir()
    with (
        pytest.raises(FileNotFoundError, match="still mounted"),
        locks.writing(drive / "mine"),
    ):
        disconnect(drive, then)


def test_folder_above_is_not_created(tmp_path):
    """It is on a disk that is not mounted, or it is a typo."""
    with (
        pytest.raises(FileNotFoundError, match="still mounted"),
        locks.locked(tmp_path / "drive" / "datasets" / "mine"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_dataset_is_not_reported_as_saved_if_the_disk_disappears(tmp_path, monkeypatch):
    drive = tmp_path / "drive"
    drive.mkdir()
    rows = [Row(messages=data.to_messages({"question": "Q", "answer": "A"}), line=1)]
    describe = saving.describe

    def meanwhile(part: Path, *args: object) -> dict:
        disconnect(drive, "again")
        part.mkdir()  # as a library does that creates all folders of a file
        return describe(part, *args)

    monkeypatch.setattr(saving, "describe", meanwhile)
    with pytest.raises(FileNotFoundError, match="still mounted"):
        data.save(drive / "mine", {"train": rows}, [], card="")


@pytest.mark.parametrize("after", ["the look", "the lock file"])
def test_disk_that_disappears_while_it_is_locked(tmp_path, monkeypatch, after):
    """The result was written without a lock, into a folder that was made anew."""
    disk, opens = tmp_path / "disk", os.open
    disk.mkdir()

    def vanish(*args, **given):
        if after == "the look":
            disk.rename(tmp_path / "away")
            return opens(*args, **given)
        descriptor = opens(*args, **given)
        disk.rename(tmp_path / "away")
        monkeypatch.setattr(os, "open", opens)
        return descriptor

    monkeypatch.setattr(os, "open", vanish)
    with (
        pytest.raises(FileNotFoundError, match="Is the disk"),
        locks.writing(disk / "a"),
    ):
        (disk / "a").mkdir(parents=True)
    assert not disk.exists()
