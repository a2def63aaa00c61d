from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colab_utils import runtime

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "CI", "HEADLESS", "WORKSPACE")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No variable says where this runs, and the current folder is no clone."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "_on_drive", False)
    monkeypatch.setattr(runtime, "_announced", set())


def run(code: str, *path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, with `path` first on its import path."""
    clean = {k: v for k, v in os.environ.items() if k not in PLACES}
    search = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": search} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- where this runs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, "this machine"),
        ({"CI": "false"}, "this machine"),
        ({"CI": "true"}, "CI"),
        ({"COLAB_RELEASE_TAG": "release-colab_20260819"}, "Colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "Kaggle"),
        # Kaggle's image is built on Colab's.
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_RELEASE_TAG": "x"}, "Kaggle"),
    ],
)
def test_place(monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.detect().place == place
    assert runtime.on_colab() == (place == "Colab")
    assert runtime.on_kaggle() == (place == "Kaggle")


def test_colab_is_known_by_its_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", json)
    assert runtime.on_colab()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"HEADLESS": "0"}, False),
        ({"HEADLESS": ""}, False),
        ({"HEADLESS": "1"}, True),
        ({"CI": "true"}, True),
        ({"CI": "false", "HEADLESS": "1"}, True),
    ],
)
def test_headless(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.headless() is expected


# --- the compute dtype ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "name", "dtype", "reason"),
    [
        (
            (7, 5),
            "Tesla T4",
            "float16",
            "float16: Tesla T4 is compute capability 7.5, which has no bfloat16",
        ),
        (
            (8, 0),
            "NVIDIA A100-SXM4-40GB",
            "bfloat16",
            "bfloat16: NVIDIA A100-SXM4-40GB is compute capability 8.0, "
            "which has bfloat16",
        ),
        ((6, 0), "Tesla P100-PCIE-16GB", "float16", "6.0"),
        ((7, 0), "Tesla V100-SXM2-16GB", "float16", "7.0"),
        ((8, 9), "NVIDIA L4", "bfloat16", "8.9"),
        ((12, 0), "NVIDIA RTX PRO 6000", "bfloat16", "12.0"),
        (None, "the CPU", "float32", "float32: the CPU computes in full precision"),
    ],
)
def test_dtype_for(capability, name, dtype, reason):
    found = runtime.dtype_for(capability, name)
    assert found[0] == dtype
    assert reason in found[1]


@given(st.tuples(st.integers(3, 20), st.integers(0, 9)), st.text(max_size=20))
def test_bfloat16_starts_at_capability_8(capability, name):
    dtype, reason = runtime.dtype_for(capability, name)
    assert (dtype == "bfloat16") == (capability[0] >= 8)
    assert ("no bfloat16" in reason.removeprefix(f"{dtype}: {name}")) == (
        dtype == "float16"
    )


def test_detect_agrees_with_this_machine():
    import psutil
    import torch

    found = runtime.detect()
    assert found.ram_gib == pytest.approx(psutil.virtual_memory().total / 2**30)
    assert 0 < found.disk_gib < 1e6
    if torch.cuda.is_available():
        assert found.device == "cuda"
        assert found.accelerator == torch.cuda.get_device_name(0)
        expected = runtime.dtype_for(torch.cuda.get_device_capability(0), "")[0]
        assert found.dtype == expected
    else:
        assert (found.device, found.dtype, found.memory_gib) == ("cpu", "float32", None)
    with pytest.raises(AttributeError):  # frozen
        found.dtype = "bfloat16"


def test_describe_prints_a_few_lines(capsys):
    found = runtime.describe()
    printed = capsys.readouterr().out
    assert isinstance(found, runtime.Runtime)
    assert printed.startswith("this machine: ")
    assert f"{found.ram_gib:.1f} GiB RAM" in printed
    assert found.reason in printed.splitlines()
    assert "Change runtime type" not in printed


def test_describe_says_how_to_get_a_gpu_on_colab(monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    found = runtime.describe()
    printed = capsys.readouterr().out
    switch = "Runtime > Change runtime type > T4 GPU, then run again from the top"
    assert (switch in printed) == (found.device == "cpu")
    assert "demo model" not in printed  # which model is `models.choose`'s to tell


def test_importing_is_light():
    heavy = ["torch", "transformers", "numpy", "psutil", "huggingface_hub", "dotenv"]
    result = run(
        "import sys; from colab_utils import install, runtime;"
        "from colab_utils.hub import tokens;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


# --- the workspace -------------------------------------------------------------------


def test_workspace_is_beside_the_notebook(tmp_path, capsys):
    assert runtime.workspace() == tmp_path / "workspace"
    assert (tmp_path / "workspace").is_dir()
    assert capsys.readouterr().out == f"workspace: {tmp_path / 'workspace'}\n"
    runtime.workspace()
    assert capsys.readouterr().out == ""


def test_on_colab_a_workspace_that_will_be_lost_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    runtime.workspace()
    assert (
        "lost when this machine goes: set USE_DRIVE = True" in capsys.readouterr().out
    )
    monkeypatch.setenv("WORKSPACE", str(tmp_path / "mine"))
    runtime.workspace()
    assert capsys.readouterr().out == f"workspace: {tmp_path / 'mine'}\n"


def test_workspace_is_at_the_root_of_a_clone(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "colab_utils").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert runtime.workspace() == tmp_path / "workspace"


def test_another_projects_pyproject_is_no_clone(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert runtime.workspace() == tmp_path / "inner" / "workspace"


def test_the_variable_names_the_workspace(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORKSPACE", "~/a/b")
    assert runtime.workspace(drive=True) == tmp_path / "home" / "a" / "b"
    assert "drive=True is ignored" in capsys.readouterr().out
    monkeypatch.setenv("WORKSPACE", "relative")
    assert runtime.workspace() == tmp_path / "relative"


def test_drive_outside_colab_is_told(tmp_path, capsys):
    assert runtime.workspace(drive=True) == tmp_path / "workspace"
    first, *_ = capsys.readouterr().out.splitlines()
    assert "ignored" in first and "Colab" in first


def test_drive_is_not_asked_for_when_nobody_watches(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    monkeypatch.setenv("HEADLESS", "1")
    assert runtime.workspace(drive=True) == tmp_path / "workspace"
    assert "nobody watches" in capsys.readouterr().out


def colab_with_drive(folder: Path, mount: str) -> Path:
    """A stand-in for google.colab whose `drive.mount` does `mount`."""
    package = folder / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(f"def mount(mountpoint):\n    {mount}\n")
    return folder


def test_drive_is_mounted_once_and_kept(tmp_path):
    # What Drive's folder would be cannot be made here, so only its name is looked at.
    stand_in = colab_with_drive(tmp_path, "print('mounting', mountpoint)")
    result = run(
        "import pathlib, os\n"
        "pathlib.Path.mkdir = lambda *a, **k: None; os.access = lambda *a: True\n"
        "from colab_utils import runtime\n"
        "for drive in (True, False, True): print(runtime.workspace(drive))",
        stand_in,
        COLAB_RELEASE_TAG="x",
    )
    folder = "/content/drive/MyDrive/llama-workspace"
    lines = result.stdout.splitlines()
    assert lines[0] == "mounting /content/drive"
    assert lines[1:] == [f"workspace: {folder}", *[folder] * 3], result.stderr


def test_a_refused_drive_says_what_to_do(tmp_path):
    stand_in = colab_with_drive(tmp_path, "raise ValueError('mount failed')")
    result = run(
        "from colab_utils import runtime; runtime.workspace(drive=True)",
        stand_in,
        COLAB_RELEASE_TAG="x",
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: Google Drive could not be mounted")
    assert "mount failed" in last and "drive=False" in last


@pytest.mark.parametrize("case", ["a file", "under a file", "read-only"])
def test_a_workspace_that_cannot_be_written(case, tmp_path, monkeypatch):
    (tmp_path / "taken").touch()
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o500)
    # A superuser may write to the sealed folder; nobody makes folders in /proc.
    read_only = sealed if os.geteuid() else Path("/proc")
    path = {
        "a file": tmp_path / "taken",
        "under a file": tmp_path / "taken" / "workspace",
        "read-only": read_only / "workspace",
    }[case]
    monkeypatch.setenv("WORKSPACE", str(path))
    with pytest.raises(
        OSError, match=r"cannot be used: .*variable WORKSPACE"
    ) as caught:
        runtime.workspace()
    assert str(path) in str(caught.value)


def test_a_read_only_folder_that_exists(tmp_path, monkeypatch):
    path = tmp_path / "sealed"
    path.mkdir(mode=0o500)
    if not os.geteuid():
        path = Path("/proc/self")
    monkeypatch.setenv("WORKSPACE", str(path))
    if os.access(path, os.W_OK):
        pytest.skip("a superuser may write everywhere here")
    with pytest.raises(OSError, match="read-only"):
        runtime.workspace()


# --- handing over between notebooks --------------------------------------------------


def finished(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    return folder


def test_artefact_finds_what_is_finished(tmp_path):
    made = finished(tmp_path / "workspace" / "adapters" / "my-adapter")
    assert runtime.artefact("adapters", "my-adapter") == made


@pytest.mark.parametrize(
    ("kind", "notebook", "parameter"),
    [
        ("datasets", "01_create_dataset", "DATASET_NAME"),
        ("adapters", "02_finetune_qlora", "ADAPTER_NAME"),
        ("models", "04_merge_and_publish", "MODEL_NAME"),
    ],
)
def test_a_missing_artefact_says_what_to_run(tmp_path, kind, notebook, parameter):
    with pytest.raises(FileNotFoundError) as caught:
        runtime.artefact(kind, "mine")
    message = str(caught.value)
    assert notebook in message and "does not exist" in message
    assert "holds no finished one" in message and parameter not in message

    finished(tmp_path / "workspace" / kind / "zebra")
    finished(tmp_path / "workspace" / kind / "aardvark")
    (tmp_path / "workspace" / kind / "mine").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        runtime.artefact(kind, "mine")
    message = str(caught.value)
    assert notebook in message and "recipe.json is missing" in message
    assert f"set {parameter} to one of: aardvark, zebra" in message


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../mine", "a/b", "a\\b", "/etc", "a..b", "a\0b", "a" * 81],
)
def test_names_are_plain(name):
    with pytest.raises(ValueError, match="DATASET_NAME"):
        runtime.artefact("datasets", name)


@settings(deadline=None)  # it looks at the disk
@given(st.text() | st.text(alphabet="./\\ a"))
def test_no_name_leads_out_of_the_workspace(name):
    try:
        path = runtime.artefact("datasets", name)
    except (ValueError, FileNotFoundError):
        return
    raise AssertionError(f"{name!r} found {path}")


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="datasets, adapters, models"):
        runtime.artefact("dataset", "mine")


# --- progress ------------------------------------------------------------------------


def test_progress_hands_on_every_item(capsys):
    assert list(runtime.progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""  # shorter than a second: no bar


@pytest.mark.parametrize(("headless", "seen"), [("0", True), ("1", False)])
def test_progress_is_shown_when_somebody_watches(monkeypatch, capsys, headless, seen):
    import time

    monkeypatch.setenv("HEADLESS", headless)
    with runtime.progress(None, "merging", total=2, unit="B") as bar:
        time.sleep(1.2)
        bar.update(2)
    printed = capsys.readouterr().err
    assert ("merging" in printed and "2/2" in printed) == seen


# --- noise ---------------------------------------------------------------------------


@pytest.fixture
def heard(caplog):
    """The messages that come through while `quiet()` is on."""
    loggers = [logging.getLogger(name) for name in runtime.NOISE]
    for logger in loggers:  # Some libraries keep their messages from the root logger.
        logger.addHandler(caplog.handler)
    runtime.quiet()
    runtime.quiet()
    yield lambda: [record.getMessage() for record in caplog.records]
    for logger in loggers:
        logger.removeHandler(caplog.handler)
        logger.filters.clear()


def test_quiet_drops_the_known_noise_once(heard):
    known = {
        "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from "
        "kernels-community: No module named 'kernels'.",
        "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens that "
        "differ from the model config.\nUpdated tokens: {'pad_token_id': 0}.",
        "trl.trainer.sft_trainer": "You are using packing, but the attention "
        "implementation is not set to a supported flash attention variant.",
        "huggingface_hub.utils._http": "You are sending unauthenticated requests to "
        "the HF Hub. Please set a HF_TOKEN.",
    }
    assert known.keys() == runtime.NOISE.keys()
    for name, message in known.items():
        logging.getLogger(name).warning(message)
        assert len(logging.getLogger(name).filters) == 1
    assert heard() == []


def test_quiet_keeps_what_matters(heard):
    kept = [
        ("bitsandbytes.backends.cpu.ops", "something else failed"),
        (
            "transformers.trainer_utils",
            "The tokenizer has new PAD/BOS/EOS tokens. Updated tokens: "
            "{'eos_token_id': 5, 'pad_token_id': 0}.",
        ),
        ("trl.trainer.sft_trainer", "rows were cut"),
        ("huggingface_hub.utils._http", "429: slow down"),
    ]
    for name, message in kept:
        logging.getLogger(name).warning(message)
    assert set(heard()) == {message for _, message in kept}


def test_the_noise_is_what_the_libraries_really_say():
    """The patterns match the sources of the installed versions."""
    import importlib.util

    # Python is not asked to import bitsandbytes: one parent at a time is enough.
    for name, text in {
        "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
        "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens",
    }.items():
        package, _, rest = name.partition(".")
        root = Path(importlib.util.find_spec(package).origin).parent
        source = (root / (rest.replace(".", "/") + ".py")).read_text()
        assert text in source and "getLogger(__name__)" in source.replace(
            "logging.get_logger(__name__)", "getLogger(__name__)"
        )


# --- parameters and names -------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/b", "a\\b", "a\n", ".x", "x.part", 7, None]
)
def test_a_name_that_is_no_folder_is_refused_before_and_after(headless, name):
    for find in (runtime.new_artefact, runtime.artefact):
        with pytest.raises(ValueError, match=r"ADAPTER_NAME = .* is no plain name"):
            find("adapters", name)


def test_what_was_not_made_here_is_never_replaced(headless):
    folder = runtime.new_artefact("models", "mine")
    assert folder == headless / "models" / "mine" and not folder.exists()
    folder.mkdir(parents=True)
    assert runtime.new_artefact("models", "mine") == folder
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"Choose another MODEL_NAME"):
        runtime.new_artefact("models", "mine")
    (folder / "recipe.json").write_text("{}")  # a model that stands there is replaced
    assert runtime.new_artefact("models", "mine") == folder


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((0, 1, 1024), "X = 0, but it must be a whole number from 1 to 1024."),
        ((2.5, 1, 9), "X = 2.5, but it must be a whole number from 1 to 9."),
        ((True, 1, 9), "X = True, but it must be a whole number from 1 to 9."),
        (("10%", 0.0, 1.0), "X = '10%', but it must be a number from 0 to 1."),
        (("foo", "a", "b"), "X = 'foo', but it must be one of 'a', 'b'."),
    ],
)
def test_a_parameter_out_of_range_is_named(rule, message):
    with pytest.raises(ValueError) as error:
        runtime.require(X=rule)
    assert str(error.value) == message


def test_parameters_within_their_range_pass():
    runtime.require(A=(1, 1, 9), B=(0.5, 0.0, 1.0), C=(1, 0.0, 1.0), D=("a", "a", "b"))


# --- replacing a folder ---------------------------------------------------------------


def made(folder, text: str):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(text)
    return folder


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = made(tmp_path / "mine", "old")
    (folder / "more").write_text("x")
    made(tmp_path / ".mine.old", "of a run that was killed while it deleted this")
    runtime.replace(made(tmp_path / "new", "new"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in folder.iterdir()] == ["recipe.json"]
    assert (folder / "recipe.json").read_text() == "new"


@pytest.mark.parametrize("ask", [runtime.artefact, runtime.new_artefact])
def test_an_artefact_whose_replacement_was_killed_is_found(headless, ask):
    made(headless / "models" / ".mine.old", "old")
    folder = ask("models", "mine")
    assert (folder / "recipe.json").read_text() == "old"
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
