"""Ask a server prompts FIRST to LAST with three workers, and keep the answers.

python ask_and_keep.py URL FILE FIRST LAST
"""

from __future__ import annotations

import sys
from pathlib import Path

from colab_utils import creation

url, file, first, last = sys.argv[1:]
endpoint = creation.Endpoint(url, "m", key_name="", per_minute=1e6, first_wait=0.01)
ask = creation.Kept(endpoint, Path(file), endpoint.key, workers=3)
prompts = [f"prompt {n}" for n in range(int(first), int(last))]
answers = ask([[{"role": "user", "content": prompt}] for prompt in prompts])
assert all(answer.startswith("answer") for answer in answers)
