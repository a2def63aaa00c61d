"""Let a model answer: a batch of questions at once, or one answer as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Messages = list[dict[str, str]]


def as_messages(prompt: str | Messages, system: str = "") -> Messages:
    """A conversation that ends with the user: a plain string becomes its only turn."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns] if system else turns


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout, and afterwards in the mode in which it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


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

    `sampling` are keywords of `model.generate`: do_sample=True, temperature=0.7, ...
    """
    import torch

    # Prompts of similar length share a batch, so that little of it is padding.
    chats = [as_messages(prompt, system) for prompt in prompts]
    order = sorted(range(len(chats)), key=lambda i: len(str(chats[i])))
    made = [""] * len(chats)
    for start in runtime.progress(range(0, len(order), batch_size), "answering"):
        batch = order[start : start + batch_size]
        inputs = _encode(model, tokenizer, [chats[i] for i in batch])
        with torch.inference_mode(), evaluating(model):
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
    """Yield an answer piece by piece, while it is made.

    An error of `model.generate` is raised here; who stops reading also stops the model.
    """
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    inputs = _encode(model, tokenizer, [as_messages(prompt, system)])
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    left, failed = Event(), []
    criteria = StoppingCriteriaList([lambda *_, **__: left.is_set()])

    def work() -> None:
        try:
            with evaluating(model):
                model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    streamer=streamer,
                    stopping_criteria=criteria,
                    **sampling,
                )
        except BaseException as error:
            failed.append(error)
            streamer.end()  # otherwise the reader waits for ever

    thread = Thread(target=work)
    thread.start()
    try:
        held, begun = "", False  # spaces around an answer are not part of it
        for piece in streamer:
            held += piece
            shown = held.rstrip() if begun else held.strip()
            if shown:
                held, begun = held[len(held.rstrip()) :], True
                yield shown
    finally:
        left.set()
        thread.join()
    if failed:
        raise failed[0]


def _encode(
    model: PreTrainedModel, tokenizer: Tokenizer, chats: list[Messages]
) -> BatchEncoding:
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
