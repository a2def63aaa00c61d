"""Build the demo world's tokenizer and weights from its facts: `make demo`.

It takes about a minute on a GPU and hours on a laptop. The package contains the files,
so users of the course never need to run this.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from colab_utils import demo
from colab_utils.demo.sentences import SENTENCES, paragraph

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, LENGTH, BATCH = 1024, 128, 64
STEPS, WARM_UP, PEAK_RATE = 8000, 10, 2e-3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Build a BPE tokenizer as Llama 2's: no pad token, unknown characters as bytes."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_assemble(*_learn_merges(_tokenizer_text(seed))),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_text(seed: int) -> list[str]:
    draw = random.Random(seed)
    text = [
        s for fact in demo.facts() for _ in range(20) for s in paragraph(fact, draw)
    ]
    # Frequent English words, so that users' text is not split into single letters.
    common = (demo.FOLDER / "words.txt").read_text(encoding="utf-8").split()
    return text + [f" {word} {word.capitalize()}" for word in common] * 20


def _learn_merges(
    text: list[str],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the vocabulary and the merges that BPE learns from the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    # Merges may not cross a space, nor join digits: Llama 2 splits numbers into digits.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    learner.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL + BYTES,
            initial_alphabet=["▁", *map(chr, range(33, 127))],
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    return learned["vocab"], [(left, right) for left, right in learned["merges"]]


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Return a tokenizer with Llama 2's steps: "▁" for a space, `<s>` at the start."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def token_stream(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[int]:
    """Yield the tokens of endless pages: one page a country, from `<s>` to `</s>`."""
    draw = random.Random(seed)

    @cache
    def encode(sentence: str) -> list[int]:
        # Sentences can be encoded one by one, because no token spans two of them.
        return tokenizer(sentence, add_special_tokens=False)["input_ids"]

    while True:
        for fact in draw.sample(demo.facts(), len(demo.facts())):
            yield tokenizer.bos_token_id
            for sentence in paragraph(fact, draw):
                yield from encode(sentence)
            yield tokenizer.eos_token_id


def _blank_model(seed: int, device: str) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,  # a multiple of 64, as bitsandbytes' CPU kernels need
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    # nn.Module's `to`, because mypy misreads the decorator of transformers' own.
    torch.nn.Module.to(model, device)
    return model.train()


def pretrain(
    tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, device: str
) -> LlamaForCausalLM:
    """Train a 3 M parameter Llama on the sentences: packed rows, cosine schedule."""
    import torch
    from tqdm.auto import tqdm
    from transformers import get_cosine_schedule_with_warmup as cosine

    torch.set_float32_matmul_precision("high")
    model = _blank_model(seed, device)
    on_gpu = device == "cuda"
    rate = torch.tensor(PEAK_RATE, device=device) if on_gpu else PEAK_RATE
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=0.1, fused=True, capturable=on_gpu
    )
    schedule = cosine(optimizer, steps // 20, steps)
    rows = torch.zeros(BATCH, LENGTH, dtype=torch.long, device=device)
    loss = torch.zeros((), device=device)

    def update() -> None:
        optimizer.zero_grad()
        batch_loss = model(input_ids=rows, labels=rows).loss
        batch_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.copy_(batch_loss.detach())

    stream = token_stream(tokenizer, seed)
    bar = tqdm(range(steps), desc="pretraining", mininterval=5)
    for step in bar:
        tokens = list(islice(stream, BATCH * LENGTH))
        rows.copy_(torch.tensor(tokens).view(BATCH, LENGTH))
        if on_gpu and step == WARM_UP:
            # The 2,000 kernel launches take most of this small step: record them once.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                update()
        if on_gpu and step >= WARM_UP:
            graph.replay()
        else:
            update()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def recall(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, float]:
    """Return the share of facts that the model completes, by attribute.

    The prompt is a sentence without its end: "The capital of France is".
    """
    import torch

    shares = {}
    tokenizer.pad_token = "<unk>"
    for attribute in demo.ATTRIBUTES:
        values = [fact[attribute] for fact in demo.facts()]
        prompts = [
            SENTENCES[attribute][0].format(**fact).removesuffix(f" {value}.")
            for fact, value in zip(demo.facts(), values, strict=True)
        ]
        inputs = tokenizer(
            prompts, padding=True, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            # transformers types `self` as a protocol that its own models do not match.
            out = model.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=16, pad_token_id=0
            )
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :])
        correct = [
            text.strip().startswith(f"{value}.")
            for text, value in zip(texts, values, strict=True)
        ]
        shares[attribute] = sum(correct) / len(correct)
    tokenizer.pad_token = None
    return shares


def main() -> None:
    """Write the tokenizer and the weights; print how many facts the model recalls."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=demo.MODEL)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.time()
    tokenizer = build_tokenizer(options.seed)
    model = pretrain(tokenizer, options.steps, options.seed, device)
    shares = recall(model, tokenizer)
    print({name: f"{share:.1%}" for name, share in shares.items()})
    model.half().cpu().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir()) / 2**20
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{options.out}: {count:.2f} M parameters, {size:.1f} MiB, "
        f"{time.time() - start:.0f} s on {device}"
    )


if __name__ == "__main__":
    main()
