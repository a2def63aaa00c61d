"""Let a model answer: a batch of questions at once, or one answer as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Messages = list[dict[str, str]]


def as_messages(prompt: str | Messages, system: str = "") -> Messages:
    """A conversation that ends with the user: a plain string becomes its only turn."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns] if system else turns


def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: list[str | Messages],
    max_new_tokens: int = 64,
    system: str = "",
    batch_size: int = 32,
    **sampling: Any,
) -> list[str]:
    """Answer every prompt, greedily unless `sampling` says otherwise.

    `sampling` are keywords of `model.generate`, such as do_sample=True, temperature=0.7.
    """
    import torch

    # Prompts of similar length share a batch, so that little of it is padding.
    chats = [as_messages(prompt, system) for prompt in prompts]
    order = sorted(range(len(chats)), key=lambda i: len(str(chats[i])))
    made = [""] * len(chats)
    for start in runtime.progress(range(0, len(order), batch_size), "answering"):
        batch = order[start : start + batch_size]
        inputs = _encode(model, tokenizer, [chats[i] for i in batch])
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, text in zip(batch, texts, strict=True):
            made[i] = text.strip()
    return made


def stream(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str | Messages,
    max_new_tokens: int = 256,
    system: str = "",
    **sampling: Any,
) -> Iterator[str]:
    """Yield an answer piece by piece, while it is made."""
    from transformers import TextIteratorStreamer

    inputs = _encode(model, tokenizer, [as_messages(prompt, system)])
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    failed: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
                **sampling,
            )
        except BaseException as error:
            failed.append(error)
            streamer.end()  # otherwise the reader waits for ever

    thread = Thread(target=work)
    thread.start()
    begun = False
    for piece in streamer:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        if piece:
            yield piece
    thread.join()
    if failed:
        raise failed[0]


def _encode(model: PreTrainedModel, tokenizer: Tokenizer, chats: list[Messages]):
    """Token ids (batch, length) padded on the left, where generation needs it."""
    texts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=False
    )
    # The template has written the one BOS already.
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_token_type_ids=False,
    ).to(model.device)
