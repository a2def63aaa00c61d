"""Let a larger GPU pass for a T4: float16, no flash attention, 14.2 GiB."""

from __future__ import annotations

import torch

CAP = 14.2  # GiB that torch may take: a T4 has 14.56, of which CUDA itself needs some


def limit() -> bool:
    """A T4's memory and attention; False, with nothing changed, without a GPU."""
    if not torch.cuda.is_available():
        return False
    card = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP * 2**30 / card)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    return True


def t4() -> bool:
    """The same, and float16 for our own code, which asks the card what it can do."""
    from colab_utils import runtime

    if not limit():
        return False
    runtime.dtype_for = lambda capability, name: ("float16", "float16: as on a T4")
    return True
