"""Push the folder `mine`, or some files of it; prints the result.

Arguments: the repository, and the names of the files.
"""

import sys
from pathlib import Path

from colab_utils import hub

try:
    name, *files = sys.argv[1:]
    print("pushed:", hub.push(Path("mine"), name, "dataset", files or None))
except OSError as error:
    print(type(error).__name__, error, sep=": ")
