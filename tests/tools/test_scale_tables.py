"""The page on several GPUs: its tables, and its script for several machines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colab_utils import data
from tools import scale_tables

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tables_are_those_computed():
    page = (ROOT / scale_tables.PAGE).read_text("utf-8")
    filled = {found[2] for found in scale_tables.TABLE.finditer(page)}
    assert filled == set(scale_tables.TABLES)
    assert scale_tables.fill(page) == page


@pytest.mark.slow
def test_script_trains_on_two_hosts(tmp_path):
    """Two launchers on this machine find each other, as those of two machines do."""
    from safetensors.torch import load_file

    rows, _ = data.load("demo")
    files = {"train": rows[:16], "test": rows[16:20]}
    data.save(tmp_path / "dataset", files, [], "", source="demo")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    command += ["--rdzv-endpoint", f"127.0.0.1:{port}", ROOT / "docs/scale/train.py"]
    command += [tmp_path / "dataset", "demo", tmp_path / "adapter", "--shard"]
    given = {"HEADLESS": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    hosts = [
        subprocess.Popen(
            command,
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = "".join(host.communicate(timeout=600)[0] for host in hosts)
    assert [host.returncode for host in hosts] == [0, 0], printed
    assert printed.count("each of 2 processes: ") == 1, printed
    assert "1/2 of each layer's weights on a GPU" in printed
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    trained = [one for name, one in tensors.items() if "lora_B" in name]
    assert trained and all(one.abs().max() > 0 for one in trained)
    assert not (tmp_path / "adapter" / "checkpoints").exists()
