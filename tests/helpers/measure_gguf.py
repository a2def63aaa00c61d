"""Print the growth of anonymous memory in GiB: measure_gguf.py SMALL LARGE BENCH.

Writes the model SMALL as GGUF, so that all is imported, then the model LARGE. BENCH is
the folder of `sampling`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from colab_utils import weights

if __name__ == "__main__":
    small, large, bench = map(Path, sys.argv[1:])
    sys.path.append(str(bench))
    from sampling import Sampler

    weights.write_gguf(small)
    with Sampler() as before:
        time.sleep(0.1)
    with Sampler() as while_writing:
        weights.write_gguf(large)
    print(while_writing.peak["RssAnon"] - before.peak["RssAnon"])
