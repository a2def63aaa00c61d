from __future__ import annotations

import threading

import pytest
import torch
from transformers import LlamaConfig

from colab_utils.fast import warmup


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has kernels to compile")
def test_prepare_without_a_gpu():
    assert warmup.prepare(LlamaConfig(), torch.float32) is None
    warmup.wait_for_all()


def test_wait_for_all_waits_for_every_warmup(monkeypatch):
    may_end, ended = threading.Event(), []

    def compile_slowly(shape, dtype):
        may_end.wait(60)
        ended.append((shape.layers, dtype))

    monkeypatch.setattr(warmup, "compile_training", compile_slowly)
    monkeypatch.setattr(warmup, "compile_decoding", compile_slowly)
    for training, layers in ((False, 1), (True, 2)):
        config = LlamaConfig(num_hidden_layers=layers)
        warmup.Warmup(config, torch.float32, training).start()
    waiting = threading.Thread(target=warmup.wait_for_all)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not ended
    may_end.set()
    waiting.join(60)
    assert not waiting.is_alive()
    assert sorted(ended, key=str) == [(1, torch.float32), (2, torch.float32)]
