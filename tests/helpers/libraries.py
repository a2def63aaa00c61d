"""Importing this imports what most notebooks import; a fork server begins with it.

All of it stays out of garbage collection, as in `colab_utils.libraries`.
"""

import gc
import importlib

from colab_utils import runtime

runtime.quiet()  # as the notebooks do, before the other imports
for name in ("datasets", "matplotlib.pyplot", "colab_utils.training.sft"):
    importlib.import_module(name)
gc.collect()
gc.freeze()
