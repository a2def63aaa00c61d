"""Let a larger GPU pass for a T4: float16, no flash attention, 14.2 GiB."""

from __future__ import annotations

import torch

from colab_utils import runtime

CAP = 14.2  # GiB that torch may take: a T4 has 14.56, of which CUDA itself needs some


def t4() -> bool:
    """Limit this process; False, with nothing changed, where there is no GPU."""
    if not torch.cuda.is_available():
        return False
    card = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CAP * 2**30 / card)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    runtime.dtype_for = lambda capability, name: ("float16", "float16: as on a T4")
    return True
