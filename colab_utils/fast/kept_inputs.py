"""Inputs of checkpointed layers in RAM or on disk, until the backward pass."""

from __future__ import annotations

import contextlib
import tempfile

import torch

from colab_utils.memory.costs import piece_rows


def pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return x (T, width) in parts that are small enough to be copied one by one."""
    return x.split(piece_rows(x.shape[1] * x.element_size()))


def to_ram(x: torch.Tensor) -> list[torch.Tensor]:
    """Return x (T, width) in RAM, in pieces.

    On a GPU the memory is page-locked. Torch rounds it up to a power of two, and keeps
    it for the next step; equal pieces waste little of it.
    """
    parts = pieces(x)
    found = [torch.empty_like(p, device="cpu", pin_memory=x.is_cuda) for p in parts]
    for piece, part in zip(found, parts, strict=True):
        piece.copy_(part, non_blocking=True)
    return found


def from_ram(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return on `device` what `to_ram` has moved."""
    rows, width = sum(len(part) for part in parts), parts[0].shape[1]
    x = torch.empty(rows, width, dtype=parts[0].dtype, device=device)
    for part, piece in zip(x.split(len(parts[0])), parts, strict=True):
        part.copy_(piece, non_blocking=True)
    return x


class OnDisk:
    """A tensor (T, width) in a file that vanishes with this object or the process.

    The file is in the system's folder of temporary files (TMPDIR).
    """

    def __init__(self, x: torch.Tensor) -> None:
        """Write x; raises OSError, which names the folder, when the disk is full."""
        self.shape, self.dtype = x.shape, x.dtype
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            for part in pieces(x):
                self.file.write(_bytes(part.cpu()))
            self.file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing writes what is buffered
                self.file.close()
            raise OSError(
                f"The input of a layer ({x.nbytes / 2**30:.2f} GiB) can't be written "
                f"to {tempfile.gettempdir()}: {error.strerror}. Free some space, or "
                "name a folder on another disk in the environment variable TMPDIR."
            ) from error

    def read(self, device: torch.device) -> torch.Tensor:
        """Return the tensor on `device`, and delete the file."""
        x = torch.empty(self.shape, dtype=self.dtype, device=device)
        self.file.seek(0)
        for part in pieces(x):
            piece = torch.empty_like(part, device="cpu")
            if self.file.readinto(_bytes(piece)) != piece.nbytes:
                raise OSError(f"A file in {tempfile.gettempdir()} became too short.")
            part.copy_(piece)
        self.file.close()
        return x


def _bytes(x: torch.Tensor) -> memoryview:
    """Return the memory of a tensor on the CPU; NumPy has no bfloat16."""
    return x.contiguous().flatten().view(torch.uint8).numpy().data
