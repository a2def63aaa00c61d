"""Write a model as GGUF with a pause at each block: write_gguf_slowly.py MODEL OUT."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from colab_utils import weights
from colab_utils.weights import gguf_blocks

convert = gguf_blocks.convert


def convert_slowly(tensor, data):
    time.sleep(0.05)
    return convert(tensor, data)


if __name__ == "__main__":
    gguf_blocks.convert = convert_slowly
    weights.write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
