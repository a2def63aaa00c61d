"""List the GPU architectures that the wheels of torch and bitsandbytes have code for.

    python -m tools.gpu_code [WHEEL ...]

Run it after the version of torch or bitsandbytes has changed in requirements.txt or
tests/files/colab-pins.txt. It downloads each wheel that tests/files/sm75.json has no
record of (half a GB for torch), and records the code in the wheel's CUDA libraries. It
reads a given wheel instead of a download. PIP_ARGS reaches pip.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = Path("tests", "files", "sm75.json")
PINS = (Path("requirements.txt"), Path("tests", "files", "colab-pins.txt"))
PACKAGES = ("torch", "bitsandbytes")
# Colab's Python and system.
PLATFORM = ["--python-version", "3.13", "--platform", "manylinux_2_28_x86_64"]
PLATFORM += ["--platform", "manylinux_2_24_x86_64"]
T4 = "sm_75"
# Libraries whose code a T4 does not need, and why.
UNUSED = {
    "torch/lib/libtorch_cuda_linalg.so": "MAGMA's routines of torch.linalg, which the "
    "course calls on the CPU only",
}
FATBIN = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of header and code, ..., arch
MAGIC = 0xBA55ED50
KINDS = {1: "compute", 2: "sm"}  # PTX and machine code


def architectures(library: bytes) -> str:
    """Return what a CUDA library has code for: "sm_75 sm_80"; `compute_75` is PTX.

    nvcc packs the code for several architectures into fat binaries, each with a header.
    The layout is that of fatbinary.h in the CUDA toolkit, and `cuobjdump --list-elf`
    finds the same.
    """
    found, mark = set(), struct.pack("<I", MAGIC)
    start = library.find(mark)
    while 0 <= start <= len(library) - FATBIN.size:
        _, version, header, size = FATBIN.unpack_from(library, start)
        place = start + header
        end = place + size if (version, header) == (1, FATBIN.size) else 0
        while place + ENTRY.size <= min(end, len(library)):
            kind, _, head, code, arch = ENTRY.unpack_from(library, place)
            if kind in KINDS:
                found.add((arch, KINDS[kind]))
            place += head + code
        start = library.find(mark, start + FATBIN.size)
    return " ".join(f"{kind}_{arch}" for arch, kind in sorted(found))


def read_wheel(wheel: Path) -> dict[str, Any]:
    """Return the record of a wheel: its name, its build, its CUDA libraries."""
    package, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as archive:
        if f"{package}/version.py" in archive.namelist():
            text = archive.read(f"{package}/version.py").decode()
            if named := re.search(r"__version__ = ['\"](.+)['\"]", text):
                version = named.group(1)
        names = sorted(n for n in archive.namelist() if n.endswith(".so"))
        libraries = {name: architectures(archive.read(name)) for name in names}
    return {
        "wheel": wheel.name,
        "build": version,
        "libraries": {name: found for name, found in libraries.items() if found},
    }


def pinned(root: Path) -> list[str]:
    """Return the pins of the packages with CUDA code, as `name==version`."""
    text = "\n".join((root / path).read_text("utf-8") for path in PINS)
    found = re.findall(rf"^(?:{'|'.join(PACKAGES)})==[\w.+]+", text, re.MULTILINE)
    return sorted(set(found))


def problems(pins: Iterable[str], records: dict[str, Any]) -> list[str]:
    """Return a sentence for each pin without a record, or without code for a T4."""
    found = []
    for pin in pins:
        if pin not in records:
            found.append(f"{RECORDS.name} lacks {pin}: run `python -m tools.gpu_code`.")
            continue
        libraries = records[pin]["libraries"]
        if not libraries:
            found.append(f"{pin} has no CUDA code at all: {records[pin]['wheel']}.")
        for name, codes in libraries.items():
            if T4 not in codes.split() and name not in UNUSED:
                found.append(
                    f"{pin}: {name} has no code for a T4 ({T4}), only for "
                    f"{codes}. Pin a version that has."
                )
    return found


def download(pin: str, folder: Path) -> Path:
    """Return the wheel of a pin, downloaded by pip; raises RuntimeError if pip fails.

    An index without Colab's own build, such as torch 2.11.0+cu128, may have the public
    release of that version.
    """
    message = ""
    for requirement in dict.fromkeys((pin, pin.partition("+")[0])):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += [*PLATFORM, "--only-binary", ":all:", "--dest", str(folder)]
        command += [*shlex.split(os.environ.get("PIP_ARGS", "")), requirement]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode == 0:
            (wheel,) = folder.glob("*.whl")
            return wheel
        message = run.stderr.strip()[-800:]
    raise RuntimeError(
        f"pip could not download {pin}: {message}\nGive pip another index in PIP_ARGS, "
        "or name the file of the wheel."
    )


def is_of(wheel: Path, pin: str) -> bool:
    """Return whether a wheel is of the pinned version, or its public release."""
    return wheel.name.split("-")[:2] in (pin.split("=="), pin.split("+")[0].split("=="))


def update(root: Path, wheels: list[Path]) -> dict[str, Any]:
    """Write the records of all pins, and return them.

    A pin without a record is downloaded unless its wheel is among `wheels`. Raises
    ValueError for a wheel of no pin, and RuntimeError if pip fails.
    """
    pins, path = pinned(root), root / RECORDS
    for wheel in wheels:
        if not any(is_of(wheel, pin) for pin in pins):
            raise ValueError(f"{wheel.name} is none of {', '.join(pins)}.")
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    records = {}
    for pin in pins:
        given = [wheel for wheel in wheels if is_of(wheel, pin)]
        if pin in old and not given:
            records[pin] = old[pin]
            continue
        with tempfile.TemporaryDirectory() as folder:
            wheel = given[0] if given else download(pin, Path(folder))
            records[pin] = read_wheel(wheel)
        if "+" in pin and not pin.endswith(f"=={records[pin]['build']}"):
            note = f"Read build {records[pin]['build']}, the one that pip found"
            records[pin] = {"note": note} | records[pin]
        print(f"{pin}: read {wheel.name}, build {records[pin]['build']}")
    path.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    return records


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    try:
        records = update(root, parser.parse_args(arguments).wheels)
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    found = problems(pinned(root), records)
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
