"""Ask the Hub as the course does; prints the outcome of each case as JSON.

Argument: a JSON list of (how, repository, token).
"""

import json
import sys
import traceback

import httpx

from colab_utils import hub
from colab_utils.hub import network

network.PAUSES = (0.05, 0.1)
network.LIMIT = httpx.Timeout(1)  # seconds


def one(how, repo, token):
    with hub.hub_errors(repo, token):
        if how == "check":
            from huggingface_hub import auth_check

            auth_check(repo, token=token or False)
        elif how == "info":
            from huggingface_hub import HfApi

            HfApi().model_info(repo, token=token or False)
        elif how == "transformers":
            from transformers import AutoConfig

            AutoConfig.from_pretrained(repo, token=token or False)
        else:
            from huggingface_hub import hf_hub_download

            name, _, revision = how.partition("@")
            hf_hub_download(repo, name, revision=revision or None, token=token or False)


results = []
for how, repo, token in json.loads(sys.argv[1]):
    if how == "can_read":
        results.append(["", hub.can_read(repo, token), ""])
        continue
    try:
        one(how, repo, token)
        results.append(["", "", ""])
    except Exception as error:
        trace = traceback.format_exc()
        results.append([type(error).__name__, str(error), trace])
print(json.dumps(results))
