from __future__ import annotations

import pytest

from colab_utils import memory


@pytest.mark.parametrize(("gpus", "copies"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_exchange_in_a_ring(gpus, copies):
    """Each GPU sends its part n - 1 times to add up, and n - 1 times to share."""
    found = memory.exchange(1000, gpus, 1.0, bandwidth=4000.0)
    assert found.bytes == 4000 * copies
    assert found.seconds == copies
    assert found.times == pytest.approx(gpus / (1 + copies))


def test_exchange_of_llama_2_7b_says_what_the_second_gpu_saves(seven_b):
    trained = memory.adapter_parameters(seven_b(), 16)
    text = str(memory.exchange(trained, 2, 5.0))
    assert "160 MB of gradients in 0.04 s" in text and "1.98 times" in text
