"""Record a decoding step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from colab_utils.fast import warmup


class Recorded:
    """A step that was recorded: `replay` computes it again, with other numbers.

    The step reads and writes the memory that it has used while it was recorded.
    """

    def __init__(self, step: Callable[[], torch.Tensor], changed: torch.Tensor) -> None:
        """Record `step`, and leave `changed`, which it changes in place, as it is."""
        warmup.wait_for_all()
        # A first step creates the buffers of libraries. It runs on the same stream:
        # cuBLAS takes and keeps up to 32 MiB for each new stream.
        before = changed.clone()
        step()
        changed.copy_(before)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.found = step()

    def replay(self) -> torch.Tensor:
        """Compute the step, and return what it has found: always the same memory."""
        self.graph.replay()
        return self.found
