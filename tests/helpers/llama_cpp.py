"""Run exported models in llama.cpp (package xllamacpp), and compare with transformers.

Only tests of `make test-export` import this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import torch
import xllamacpp
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

# Renders a template as Ollama does: system messages together, then each message.
TEMPLATE_PROGRAM = Path(__file__).with_name("render_template.go")
EDGES = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    " a",
    "a ",
    "\t\n\r\n  x",
    "<s>",
    "</s>a",
    "<unk>",
    "[INST] a [/INST]",
    "<s>[INST] <<SYS>>\nb\n<</SYS>>\n\na [/INST]",
    "▁a ▁ b",
    "<0x0A>",
    "it's WE'LL I'M",
    "12345678 1,234.5",
    "日本語の文",
    "🙂👩‍👩‍👧 é é",
    "\x00\x7f\u200b\ufeff",
    "<|begin_of_text|>hi<|eot_id|>",
    "a" * 300,
]


def render_in_go(template: str, chats: list, cache: Path) -> list[str]:
    """Render conversations with a Go template, as Ollama does."""
    run = subprocess.run(
        [sys.executable, "-c", "import go; go.main()", "run", TEMPLATE_PROGRAM],
        input=json.dumps({"Template": template, "Chats": chats}),
        env=os.environ | {"GO111MODULE": "off", "GOCACHE": str(cache)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


class LlamaCpp:
    """A model in llama.cpp's server, which runs in this process."""

    def __init__(self, file: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.verbosity = 1024, 1, 0
        params.warmup = False
        params.cpuparams.n_threads = 2
        self.server = xllamacpp.Server(params)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        options = {"add_special": special, "parse_special": True}
        return self.post("/tokenize", content=text, **options)["tokens"]

    def complete(self, prompt: list[int], count: int, **options) -> dict[str, Any]:
        """Return a greedy answer; `tokens` are its ids."""
        options |= {"temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self.post("/completion", prompt=prompt, n_predict=count, **options)


def pieces(names: list[str]) -> st.SearchStrategy[str]:
    """Draw text, tokens of the vocabulary joined at random, and both together."""
    part = st.sampled_from(names) | st.text(max_size=6) | st.sampled_from(EDGES)
    return st.text(max_size=60) | st.lists(part, max_size=12).map("".join)


def reference(folder: Path, kind: str) -> Any:
    """Return transformers' model in float32 with the weights of the GGUF file."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for weight in model.parameters():
        if kind == "q8_0" and weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(weight.detach().numpy(), q8_0)
            weight.data = torch.from_numpy(gguf.quants.dequantize(packed, q8_0))
    return model


def compare(
    served: LlamaCpp, folder: Path, kind: str, prompts: list[list[int]], count: int
) -> tuple[float, float, float]:
    """Compare llama.cpp's greedy answers with transformers' probabilities.

    Return the share of answers whose tokens all are transformers' top-1 tokens; the
    largest gap of log-probability between a token and transformers' top-1 token; the
    mean difference of the log-probabilities of the five best tokens. The last number is
    of answers without tokens that are part of a character: llama.cpp's server reports
    the probability of such a token together with the next one.
    """
    model = reference(folder, kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    halves = [
        [i, False] for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])
    ]

    def scores(prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + answer[:-1]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 :]
        return logits.double().log_softmax(-1)

    agreed, behind, differences = 0, 0.0, []
    for prompt in prompts:
        answer = served.complete(prompt, count)["tokens"]
        found = scores(prompt, answer)
        gaps = found.max(-1).values - found[torch.arange(len(answer)), answer]
        agreed += bool((gaps == 0).all())
        behind = max(behind, gaps.max().item())
        reported = served.complete(prompt, count, n_probs=5, logit_bias=halves)
        steps = reported["completion_probabilities"]
        for row, step in zip(scores(prompt, reported["tokens"]), steps, strict=True):
            differences += [
                abs(row[top["id"]].item() - top["logprob"])
                for top in step["top_logprobs"]
            ]
    assert len(differences) >= 5 * len(prompts)
    return agreed / len(prompts), behind, sum(differences) / len(differences)


# The largest gap and the mean difference of `compare`. llama.cpp rounds activations to
# float16 or 8 bits, so the order of almost equal tokens may differ.
BOUNDS = {"f16": (0.02, 0.005), "q8_0": (0.3, 0.05)}


def assert_close(found: tuple[float, float, float], kind: str) -> None:
    """Print the result of `compare`, and assert that it is within the bounds."""
    print(kind, found)
    behind, difference = BOUNDS[kind]
    assert found[1] <= behind and found[2] <= difference
