"""tools.gpu_code on small wheels, and its records of the wheels that are pinned."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest

from tools import gpu_code

ROOT = Path(__file__).parents[2]
PTX, CODE = 1, 2


def fat_binary(*codes: tuple[int, int]) -> bytes:
    """Return a fat binary with 40 bytes of code for each (kind, architecture)."""
    entries = b""
    for kind, arch in codes:
        header = struct.pack("<HHIQ", kind, 257, 64, 40) + b"\5" * 12
        entries += (header + struct.pack("<I", arch)).ljust(64 + 40, b"\1")
    return b"\x50\xed\x55\xba" + struct.pack("<HHQ", 1, 16, len(entries)) + entries


def wheel(folder: Path, name: str, build: str = "", **libraries: bytes) -> Path:
    """Write a wheel that pip accepts."""
    package, version = name.split("-")
    path = folder / f"{name}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        if build:
            archive.writestr(f"{package}/version.py", f"__version__ = '{build}'\n")
        for library, content in libraries.items():
            archive.writestr(f"{package}/{library}.so", content)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that pins two packages with CUDA code, without records."""
    (tmp_path / "tests" / "files").mkdir(parents=True)
    (tmp_path / gpu_code.PINS[0]).write_text("bitsandbytes==0.9\nnumpy==2.0\n")
    (tmp_path / gpu_code.PINS[1]).write_text("torch==0.1+cu128\n")
    return tmp_path


def test_records_of_the_pins():
    """If this fails, a pin has moved: the message has the command to run."""
    records = json.loads((ROOT / gpu_code.RECORDS).read_text("utf-8"))
    assert gpu_code.problems(gpu_code.pinned(ROOT), records) == []
    assert set(records) == set(gpu_code.pinned(ROOT))


def test_pinned_reads_both_files():
    names = [pin.partition("==")[0] for pin in gpu_code.pinned(ROOT)]
    assert set(names) == set(gpu_code.PACKAGES)
    assert names.count("torch") == 2  # Colab's, and ours


def test_architectures():
    library = b"\x7fELF" + fat_binary((CODE, 80), (CODE, 75)) + b"\0" * 9
    library += fat_binary((PTX, 120), (CODE, 75), (64, 90))
    assert gpu_code.architectures(library) == "sm_75 sm_80 compute_120"


def test_architectures_without_device_code():
    library = fat_binary((CODE, 75))
    # The magic number also occurs by chance, and at the end of a file.
    assert gpu_code.architectures(library[:4] + b"\7\0" + library[6:]) == ""
    assert gpu_code.architectures(library[:4]) == ""
    assert gpu_code.architectures(library[:40]) == ""


def test_problems():
    def record(**libraries: str) -> dict:
        return {"wheel": "torch-1.whl", "build": "1", "libraries": libraries}

    unused = dict.fromkeys(gpu_code.UNUSED, "sm_80")
    records = {
        "torch==1": record(cuda="sm_70 sm_75", **unused),
        "torch==2": record(cuda="sm_750 sm_80", other="sm_75"),
        "torch==3": record(cuda="compute_75 sm_80"),
        "torch==4": record(),
    }
    assert gpu_code.problems(["torch==1"], records) == []
    *found, missing = gpu_code.problems([*records, "torch==5"], records)
    assert [problem.split(" has ")[0] for problem in found] == [
        "torch==2: cuda",
        "torch==3: cuda",
        "torch==4",
    ]
    assert missing == "sm75.json lacks torch==5: run `python -m tools.gpu_code`."


def test_main_reads_wheels(project, capsys):
    both = fat_binary((CODE, 75), (CODE, 80))
    files = (
        wheel(project, "torch-0.1", "0.1+cu130", cuda=both, cpu=b"\x7fELF"),
        wheel(project, "bitsandbytes-0.9", cuda=fat_binary((CODE, 80))),
    )
    assert gpu_code.main([str(path) for path in files], project) == 1
    assert "bitsandbytes/cuda.so has no code for a T4" in capsys.readouterr().out
    records = json.loads((project / gpu_code.RECORDS).read_text())
    assert records["bitsandbytes==0.9"]["build"] == "0.9"
    assert records["torch==0.1+cu128"] == {
        "note": "Read build 0.1+cu130, the one that pip found",
        "wheel": files[0].name,
        "build": "0.1+cu130",
        "libraries": {"torch/cuda.so": "sm_75 sm_80"},
    }
    # A better wheel replaces a record, and the other record stays.
    better = wheel(project, "bitsandbytes-0.9", cuda=both)
    assert gpu_code.main([str(better)], project) == 0
    assert "torch" not in capsys.readouterr().out
    assert len(json.loads((project / gpu_code.RECORDS).read_text())) == 2


def test_main_with_a_wheel_of_no_pin(project, capsys):
    other = wheel(project, "torch-0.2", cuda=fat_binary((CODE, 75)))
    assert gpu_code.main([str(other)], project) == 1
    assert "torch-0.2-py3-none-any.whl is none of bitsandbytes==0.9" in (
        capsys.readouterr().err
    )
    assert not (project / gpu_code.RECORDS).exists()


@pytest.mark.slow
def test_main_downloads_what_has_no_record(project, monkeypatch, capsys):
    """Colab's own build is not in the index, so pip takes the public release."""
    (project / gpu_code.PINS[0]).write_text("numpy==2.0\n")
    index = project / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{index}'")
    assert gpu_code.main([], project) == 1
    assert "pip could not download torch==0.1+cu128" in capsys.readouterr().err
    wheel(index, "torch-0.1", "0.1+cu130", cuda=fat_binary((CODE, 75)))
    assert gpu_code.main([], project) == 0
    assert "build 0.1+cu130" in capsys.readouterr().out
    monkeypatch.setenv("PIP_ARGS", "--no-such-option")
    assert gpu_code.main([], project) == 0  # nothing is left to download
