"""The machine that a notebook runs on, its parameters, and hidden messages."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.processes import PLACES, run
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import runtime


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Remove the variables that say where this runs; leave the project's clone."""
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


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
def test_detect_place(monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.detect().place == place
    assert runtime.on_colab() == (place == "Colab")
    assert runtime.on_kaggle() == (place == "Kaggle")


def test_on_colab_by_its_module(monkeypatch):
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
def test_dtype_for_bfloat16_from_capability_8(capability, name):
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


@pytest.mark.parametrize(
    ("variable", "switch"),
    [
        ("COLAB_RELEASE_TAG", "Runtime > Change runtime type > T4 GPU, then run again"),
        (
            "KAGGLE_KERNEL_RUN_TYPE",
            "Settings > Accelerator > GPU T4 x2, then run again",
        ),
    ],
)
def test_describe_says_how_to_get_a_gpu(monkeypatch, capsys, variable, switch):
    monkeypatch.setenv(variable, "x")
    runtime.describe()
    assert "There is no GPU" not in capsys.readouterr().out  # none is needed
    found = runtime.describe(needs_gpu=True)
    printed = capsys.readouterr().out
    assert (switch in printed) == (found.device == "cpu")


def test_describe_elsewhere_gives_no_advice(capsys):
    runtime.describe(needs_gpu=True)
    assert "There is no GPU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "given", "visible"),
    [
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, {}, "0"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "x"}, {"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({}, {}, "0"),
        ({}, {"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_quiet_leaves_one_gpu_visible(monkeypatch, place, given, visible):
    for name in ("CUDA_VISIBLE_DEVICES", runtime.ALL_GPUS):
        monkeypatch.setenv(name, "")  # so that its value of now comes back
        monkeypatch.delenv(name)
    for name, value in {**place, **given}.items():
        monkeypatch.setenv(name, value)
    runtime.quiet()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    given = given.get("CUDA_VISIBLE_DEVICES", runtime.EVERY)
    assert os.environ[runtime.ALL_GPUS] == given


def test_gpus_are_all_that_were_visible(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_GPUS", "2,3")
    assert runtime.gpus() == ["2", "3"]
    monkeypatch.setenv("COURSE_GPUS", "all")
    machine = SimpleNamespace(device="cpu")
    monkeypatch.setattr(runtime, "detect", lambda: machine)
    assert runtime.gpus() == []
    listed = tmp_path / "nvidia-smi"
    listed.write_text("#!/bin/sh\necho 'GPU 0: Tesla T4'\necho 'GPU 1: Tesla T4'\n")
    listed.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    machine.device = "cuda"
    assert runtime.gpus() == ["0", "1"]


def test_import_is_light():
    heavy = ["torch", "transformers", "numpy", "psutil", "huggingface_hub", "dotenv"]
    result = run(
        "import sys; from colab_utils import install, runtime;"
        "from colab_utils.hub import tokens;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.slow
def test_quiet_imports_bitsandbytes_without_the_compiler():
    result = run(
        "import sys; from colab_utils import runtime; runtime.quiet(); import torch;"
        "names = ['bitsandbytes', 'torch._inductor.compile_fx'];"
        "print([name in sys.modules for name in names], torch.compile.__module__)"
    )
    assert result.stdout.strip() == "[True, False] torch", result.stderr


@pytest.mark.slow
def test_quiet_imports_transformers_without_scikit_learn_and_scipy():
    """The functions that transformers imports of them compute what they compute."""
    result = run(
        "import sys; from colab_utils import runtime; runtime.quiet()\n"
        "print([n in sys.modules for n in ['transformers', 'sklearn', 'scipy']])\n"
        "from transformers.data import metrics as ours\n"
        "from transformers.generation import candidate_generator\n"
        "from transformers.loss import loss_for_object_detection as detection\n"
        "import numpy\n"
        "a, b = numpy.array([0, 1, 1, 0]), numpy.array([0, 1, 0, 0])\n"
        "pairs = ["
        "(candidate_generator.roc_curve, 'sklearn.metrics'),"
        "(ours.f1_score, 'sklearn.metrics'), (ours.pearsonr, 'scipy.stats')]\n"
        "found = [f(a, b) for f, _ in pairs]\n"
        "theirs = [getattr(sys.modules[m], f.args[1])(a, b) for f, m in pairs]\n"
        "print(str(found) == str(theirs))\n"
        "print(detection.linear_sum_assignment(numpy.eye(2))[1])\n"
    )
    lines = ["[True, False, False]", "True", "[1 0]"]
    assert result.stdout.splitlines() == lines, result.stderr


@pytest.mark.slow
def test_quiet_keeps_only_libraries_out_of_garbage_collection():
    result = run(
        "import gc; from colab_utils import runtime; runtime.quiet();"
        "before = gc.get_freeze_count(); later = [[]]; runtime.quiet();"
        "print(before > 10**5, gc.get_freeze_count() == before, gc.isenabled())"
    )
    assert result.stdout.split() == ["True", "True", "True"], result.stderr
    assert result.stderr == ""  # Triton reports nothing at the end


# --- progress ------------------------------------------------------------------------


def test_progress_yields_every_item(capsys):
    assert list(runtime.progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""  # shorter than a second: no bar


@pytest.mark.slow
@pytest.mark.parametrize(("headless", "seen"), [("0", True), ("1", False)])
def test_progress_is_hidden_when_headless(monkeypatch, capsys, headless, seen):
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
    loggers = [logging.getLogger(name) for name in runtime.IGNORED_MESSAGES]
    for logger in loggers:  # Some libraries keep their messages from the root logger.
        logger.addHandler(caplog.handler)
    runtime.quiet()
    runtime.quiet()
    yield lambda: [record.getMessage() for record in caplog.records]
    for logger in loggers:
        logger.removeHandler(caplog.handler)
        logger.filters.clear()


RESUMED = (
    "Warning: The following arguments do not match the ones in the "
    "`trainer_state.json` within the checkpoint directory: \n\tlogging_steps: 0.02 "
    "(from args) != 1 (from trainer_state.json)"
)


def test_quiet_hides_known_messages(heard):
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
    assert known.keys() == runtime.IGNORED_MESSAGES.keys()
    for name, message in known.items():
        logging.getLogger(name).warning(message)
        assert len(logging.getLogger(name).filters) == 1
    logger = logging.getLogger("transformers.trainer_utils")
    logger.warning(RESUMED)
    for tokens in ("'bos_token_id': None, 'pad_token_id': 3", "'bos_token_id': None"):
        logger.warning(
            f"The tokenizer has new PAD/BOS/EOS tokens. Updated tokens: {{{tokens}}}."
        )
    assert heard() == []


def test_quiet_keeps_other_messages(heard):
    kept = [
        ("bitsandbytes.backends.cpu.ops", "something else failed"),
        (
            "transformers.trainer_utils",
            "The tokenizer has new PAD/BOS/EOS tokens. Updated tokens: "
            "{'eos_token_id': 5, 'pad_token_id': 0}.",
        ),
        ("transformers.trainer_utils", RESUMED + "\n\tsave_steps: 1 != 2"),
        ("trl.trainer.sft_trainer", "rows were cut"),
        ("huggingface_hub.utils._http", "429: slow down"),
    ]
    for name, message in kept:
        logging.getLogger(name).warning(message)
    assert set(heard()) == {message for _, message in kept}


def test_ignored_messages_match_the_installed_libraries():
    """The patterns match the sources of the installed versions."""
    import importlib.util

    # Look up the top package only: to find a submodule, Python imports its parents.
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
