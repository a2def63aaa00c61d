"""Importing this imports what most notebooks import; a fork server begins with it.

The libraries stay out of garbage collection: the notebooks often free memory, and each
time the collector would search the libraries' objects, which takes half a second.
"""

import gc
import importlib

from colab_utils import runtime

runtime.quiet()  # as the notebooks do, before the other imports
for name in ("datasets", "matplotlib.pyplot", "colab_utils.training.sft"):
    importlib.import_module(name)
gc.collect()
gc.freeze()
