"""install.missing with a real pip in a real environment, with tiny packages.

The packages have the names, versions and requirements of Colab's. pip resolves,
installs and removes them without a network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from colab_utils import install

ROOT = Path(__file__).resolve().parents[1]
COLAB = {name: "2.0" for name in install.SHIPPED} | {
    "torch": "2.11.0+cu128",
    "torchao": "0.10.0",
    "datasets": "4.0.0",
    "packaging": "26.3",
}


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write a wheel of one module with a `__version__`."""
    module, stem = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\n"
        f"Version: {version}\n" + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{path},,\n" for path in [*files, record])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def python(folder: Path, *arguments: str, links: Path) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PY"))}
    return subprocess.run(
        [folder / "bin" / "python", *arguments],
        env=clean
        | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_NO_CACHE_DIR": "1"}
        | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def set_up(folder: Path, links: Path, before: str = "") -> subprocess.CompletedProcess:
    code = f"{before}\nfrom colab_utils import install\ninstall.missing()"
    return python(folder, "-c", code, links=links)


def installed(folder: Path) -> dict[str, str]:
    listed = python(folder, "-m", "pip", "freeze", "--all", links=folder).stdout
    return dict(line.split("==") for line in listed.split() if "==" in line)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Write the wheels of an image like Colab's, and of the three that it lacks."""
    folder = tmp_path_factory.mktemp("packages")
    for name, version in COLAB.items():
        wheel(folder, name, version)
    wheel(folder, "trl", "0.29.1", "datasets>=3.0", "packaging>20", "transformers>=2")
    wheel(folder, "bitsandbytes", "0.50.2", "torch<3,>=2.4", "numpy>=1.17")
    wheel(folder, "gguf", "0.19.0", "numpy>=1.17", "tqdm>=2")
    # Newer versions, which pip prefers.
    wheel(folder, "datasets", "5.1.0")
    wheel(folder, "torch", "2.13.0")
    return folder


@pytest.fixture(scope="module")
def image(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "venv"
    venv.create(folder, with_pip=True)
    pins = [f"{name}=={version}" for name, version in COLAB.items()]
    done = python(folder, "-m", "pip", "install", "-q", *pins, links=packages)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def colab(image, tmp_path):
    """Copy the image, because the test changes it."""
    return Path(shutil.copytree(image, tmp_path / "venv", symlinks=True))


@pytest.mark.slow
def test_missing_installs_missing_and_replaces_nothing(colab, packages):
    before = installed(colab)
    assert before["torch"] == "2.11.0+cu128" and "trl" not in before
    done = set_up(colab, packages)
    assert done.stdout == (
        "set-up: installed trl 0.29.1, bitsandbytes 0.50.2, gguf 0.19.0; removed "
        "torchao 0.10.0 (peft refuses float16 LoRA with it)\n"
    ), done.stderr
    after = installed(colab)
    added = {"trl": "0.29.1", "bitsandbytes": "0.50.2", "gguf": "0.19.0"}
    del before["torchao"]
    assert after == before | added

    # The same kernel can import the new packages. A second run installs nothing: it
    # has no wheels.
    again = set_up(colab, colab / "nothing", "import trl; print(trl.__version__)")
    assert again.stdout == "0.29.1\nset-up: nothing to do\n", again.stderr


@pytest.mark.slow
def test_missing_installs_only_missing(colab, packages):
    pins = ["trl==0.29.1", "gguf==0.19.0"]
    python(colab, "-m", "pip", "install", "-q", *pins, links=packages)
    gone = ["python-dotenv", "torchao"]
    python(colab, "-m", "pip", "uninstall", "-qy", *gone, links=packages)
    done = set_up(colab, packages)
    assert done.stdout == (
        "set-up: installed bitsandbytes 0.50.2, python-dotenv 2.0\n"
    ), done.stderr
    assert installed(colab)["torch"] == "2.11.0+cu128"


@pytest.mark.slow
def test_missing_installs_more_and_replaces_nothing(colab, packages, tmp_path):
    links = Path(shutil.copytree(packages, tmp_path / "more"))
    wheel(links, "lm_eval", "0.4.13", "datasets>=2.16")
    wheel(links, "lm_eval", "0.5.0")
    set_up(colab, packages)
    call = f"install.missing({install.HARNESS!r})"
    done = python(colab, "-c", f"from colab_utils import install; {call}", links=links)
    assert done.stdout == "set-up: installed lm_eval 0.4.13\n", done.stderr
    assert installed(colab)["datasets"] == "4.0.0"


@pytest.mark.slow
def test_missing_keeps_newer_torchao(colab, packages, tmp_path):
    wheel(tmp_path / "more", "torchao", "0.16.0")
    more = ["-q", "-U", "torchao"]
    python(colab, "-m", "pip", "install", *more, links=tmp_path / "more")
    done = set_up(colab, packages)
    assert "torchao" not in done.stdout and done.returncode == 0, done.stderr
    assert installed(colab)["torchao"] == "0.16.0"


@pytest.fixture
def greedy(packages, tmp_path):
    """Write the same packages, with a trl that needs a newer datasets than Colab's."""
    folder = Path(shutil.copytree(packages, tmp_path / "greedy"))
    wheel(folder, "trl", "0.29.1", "datasets>=4.7,<6", "transformers>=2")
    return folder


@pytest.mark.slow
def test_missing_fails_before_replacing_a_package(colab, greedy):
    before = installed(colab)
    done = set_up(colab, greedy)
    assert done.returncode == 1
    (said,) = re.findall("^RuntimeError: (.*)", done.stderr, re.MULTILINE)
    assert said.startswith("pip installed nothing: trl 0.29.1 needs datasets")
    assert "would replace datasets 4.0.0" in said
    assert ">=4.7" in said
    assert installed(colab) == before
    # Without the constraints pip replaces datasets, so the test above can fail.
    python(colab, "-m", "pip", "install", "-q", "trl==0.29.1", links=greedy)
    assert installed(colab)["datasets"] == "5.1.0"


@pytest.mark.slow
def test_missing_without_network(colab, packages):
    done = set_up(colab, colab / "nothing")
    (said,) = re.findall("^RuntimeError: (.*)", done.stderr, re.MULTILINE)
    assert said.startswith("pip reached no package index: check the network, then")
    assert done.stderr.endswith(f"{said}\n")  # nothing of pip's own text
    assert "torchao" in installed(colab)
    kaggle = set_up(
        colab, colab / "nothing", "import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = ''"
    )
    assert "package index: verify your phone, turn on" in kaggle.stderr


@pytest.mark.slow
def test_missing_sets_extra_packages_to_their_pins(colab, packages, tmp_path):
    more = Path(shutil.copytree(packages, tmp_path / "more"))
    wheel(more, "trl", "1.2.0", "datasets>=3.0")
    python(colab, "-m", "pip", "install", "-q", "trl==1.2.0", links=more)
    done = set_up(colab, more)
    assert "installed trl 0.29.1" in done.stdout, done.stderr
    assert "Restart" not in done.stdout
    python(colab, "-m", "pip", "install", "-q", "trl==1.2.0", links=more)
    first, second = set_up(colab, more, "import trl").stdout.splitlines()
    assert first == "set-up: installed trl 0.29.1"
    assert second.startswith("This notebook already loaded trl 1.2.0 (on disk: 0.29.1)")
    assert "Runtime > Restart session" in second


@pytest.mark.slow
def test_missing_reports_removed_torchao_that_is_loaded(colab, packages):
    lines = set_up(colab, packages, "import torchao, torch").stdout.splitlines()
    assert len(lines) == 2
    assert "already loaded torchao 0.10.0 (on disk: none): choose" in lines[1]
    assert "Runtime > Restart session" in lines[1]


@pytest.mark.slow
def test_constraints_ignore_broken_installations(colab, packages):
    (site,) = colab.glob("lib/python3*/site-packages")
    (site / "broken-1.0.dist-info").mkdir()
    odd = site / "odd-1.0.dist-info"
    odd.mkdir()
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: x-y\n")
    shutil.copytree(site / "torch-2.11.0+cu128.dist-info", site / "~orch-1.dist-info")
    done = set_up(colab, packages)
    assert done.stdout.startswith("set-up: installed trl"), done.stderr
    code = "from colab_utils import install; print(install._constraints(install.EXTRA))"
    pins = python(colab, "-c", code, links=packages).stdout.split()
    assert "torch==2.11.0+cu128" in pins and "datasets==4.0.0" in pins
    assert not any(pin.startswith(("odd", "broken", "trl")) for pin in pins)


# --- pure parts ----------------------------------------------------------------------


def test_extra_equals_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert set(install.EXTRA) <= {line.strip() for line in lines}


def test_dependencies_equal_extra_and_shipped():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {Requirement(line).name for line in project["dependencies"]}
    extra = {Requirement(line).name for line in install.EXTRA}
    assert declared == extra | set(install.SHIPPED)
    assert not extra & set(install.SHIPPED)


PIECES = ["1", "10", "0", ".", "!", "a", "rc", ".post", ".dev", "+", "cu128", "-", "٠"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_pip_version_matches_only_valid_versions(text):
    try:
        version = Version(text)
    except InvalidVersion:
        version = None
    kept = install.PIP_VERSION.fullmatch(text)
    assert version or not kept
    if str(version) == text:
        assert kept


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("0.10.0", True),
        ("0.10.0+cu126", True),
        ("0.15", True),
        ("0.16.0", False),
        ("0.17.0.dev20260101", False),
        ("1.0", False),
        (None, False),
    ],
)
def test_old_torchao(monkeypatch, version, old):
    monkeypatch.setattr(install, "_version", lambda name: version)
    assert install._old_torchao() == (version if old else None)


def test_torchao_equals_minimum_of_peft():
    """peft accepts torchao from the same version on below which we remove it."""
    from importlib.util import find_spec

    source = Path(find_spec("peft").origin).with_name("import_utils.py").read_text()
    (found,) = re.findall(r'TORCHAO_MINIMUM_VERSION = .*?"([\d.]+)"', source)
    assert Version(found) == Version(".".join(map(str, install.TORCHAO)))


@settings(deadline=None)
@given(st.text())
def test_failure_with_any_output(output):
    said = install._failure(output)
    assert said.startswith("pip ")
    assert len(said.splitlines()) < 40
