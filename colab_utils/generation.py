"""Let a model answer: a batch of questions at once, or one answer as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from colab_utils import runtime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.decoding import Plain, Static

Messages = list[dict[str, str]]
CONTEXT = 2048  # tokens of a conversation: 1 GiB of keys and values for Llama 2 7B


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
    stop: Sequence[str] = (),
    **sampling: Any,
) -> list[str]:
    """Answer every prompt, greedily unless `sampling` says otherwise.

    `sampling` is do_sample=True with temperature, top_k, top_p. An answer ends at the
    end-of-sequence token, before one of the strings in `stop`, or after
    `max_new_tokens`. Raises ValueError for a prompt that is longer than the model's
    context; a conversation loses its oldest turns instead, with a note.
    """
    from colab_utils import decoding

    if not prompts:
        return []
    choose, context = _chooser(**sampling), _context(model)
    chats = [as_messages(prompt, system) for prompt in prompts]
    ids = [_fit(tokenizer, chat, max_new_tokens, context) for chat in chats]
    # Prompts of similar length share a batch: as one ends, so do the others.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    size = min(len(ids[order[-1]]) + max_new_tokens, context)
    made = [""] * len(ids)
    with evaluating(model):
        decoder = decoding.decoder(model, min(batch_size, len(ids)), size)
        steps = range(0, len(order), decoder.rows)
        for start in runtime.progress(steps, "answering"):
            batch = order[start : start + decoder.rows]
            writers = [_Writer(model, tokenizer, stop) for _ in batch]
            given = [ids[i] for i in batch]
            new = min(max_new_tokens, context - max(map(len, given)))
            for _ in _write(decoder, given, new, choose, writers):
                pass
            for i, writer in zip(batch, writers, strict=True):
                made[i] = writer.finish()
    return made


def stream(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str | Messages,
    max_new_tokens: int = 256,
    system: str = "",
    stop: Sequence[str] = (),
    **sampling: Any,
) -> Iterator[str]:
    """Yield an answer piece by piece, while it is made; `answers` says how it ends.

    A piece comes with every token, "" where that shows nothing yet. Who stops reading
    also stops the model. On a GPU its memory for `CONTEXT` tokens is
    kept for the next answer.
    """
    choose, context = _chooser(**sampling), min(_context(model), CONTEXT)
    ids = _fit(tokenizer, as_messages(prompt, system), max_new_tokens, context)
    writer, shown = _Writer(model, tokenizer, stop), 0
    new = min(max_new_tokens, context - len(ids))
    with evaluating(model):
        decoder = _kept(model, context)
        for _ in _write(decoder, [ids], new, choose, [writer]):
            text = writer.shown()
            yield text[shown:]
            shown = len(text)
    if rest := writer.finish()[shown:]:
        yield rest


def release(model: PreTrainedModel) -> None:
    """Give back the memory that `stream` keeps."""
    for module in model.modules():
        vars(module).pop("_decoder", None)


def _kept(model: PreTrainedModel, size: int) -> Static | Plain:
    """The decoder of the last stream, or a new one where the model has changed."""
    from colab_utils import decoding, kernels

    inner = kernels.llama(model)
    kept = vars(inner).get("_decoder") if inner is not None else None
    if kept and not decoding.why_not(model) and kept.fits(size):
        return kept
    release(model)
    found = decoding.decoder(model, 1, size)
    if isinstance(found, decoding.Static):
        inner._decoder = found
    return found


def _write(
    decoder: Static | Plain,
    prompts: list[list[int]],
    new: int,
    choose: Callable[[torch.Tensor], torch.Tensor],
    writers: list[_Writer],
) -> Iterator[None]:
    """Add a token to each answer, again and again until all have ended."""
    scores = decoder.start(prompts)
    for left in reversed(range(new)):
        tokens = choose(scores)
        for writer, token in zip(writers, tokens.tolist(), strict=True):
            writer.add(token)
        yield
        if not left or all(writer.done for writer in writers):
            return
        scores = decoder.step(tokens)


class _Writer:
    """The text of an answer, while its tokens come."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, stop: Sequence[str]
    ) -> None:
        from tokenizers.decoders import DecodeStream

        ends = model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id}
        self.ends |= set(ends) if isinstance(ends, list) else {ends}
        self.tokenizer = tokenizer.backend_tokenizer
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.stop, self.text, self.done = [s for s in stop if s], "", False

    def add(self, token: int) -> None:
        """Take one more token, unless the answer has ended."""
        if self.done or token in self.ends:
            self.done = True
            return
        self.text += self.decoder.step(self.tokenizer, token) or ""
        found = [i for s in self.stop if (i := self.text.find(s)) >= 0]
        if found:
            self.text, self.done = self.text[: min(found)], True

    def finish(self) -> str:
        """The whole answer; spaces around it are not part of it."""
        self.done = True
        return self.shown()

    def shown(self) -> str:
        """What of the text will stay, whatever comes next."""
        text = self.text
        if not self.done:
            # it may end in the beginning of a string that is not shown
            begun = (s[:n] for s in self.stop for n in range(len(s) - 1, 0, -1))
            cut = max((len(part) for part in begun if text.endswith(part)), default=0)
            text = text[: len(text) - cut]
        return text.strip()


def _chooser(
    do_sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """How the next token is chosen from scores (rows, vocabulary)."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in given.items() if value is not None}
    if not do_sample:
        if given:
            raise ValueError(
                f"{', '.join(given)} mean something only with do_sample=True: without "
                "it the likeliest token is always taken."
            )
        return lambda scores: scores.argmax(-1)
    kinds = [TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper]
    named = zip(("temperature", "top_k", "top_p"), kinds, strict=True)
    warpers = [kind(given[name]) for name, kind in named if name in given]

    def draw(scores: torch.Tensor) -> torch.Tensor:
        for warper in warpers:
            scores = warper(None, scores)
        return scores.softmax(-1).multinomial(1).squeeze(1)

    return draw


def _context(model: PreTrainedModel) -> int:
    return model.config.max_position_embeddings


def _fit(tokenizer: Tokenizer, chat: Messages, new: int, context: int) -> list[int]:
    """Token ids of a conversation that leave room for `new` more.

    Its oldest turns are left out where they must be, never the system prompt.
    """
    system = [turn for turn in chat[:1] if turn["role"] == "system"]
    turns, dropped = chat[len(system) :], 0
    while True:
        text = tokenizer.apply_chat_template(
            system + turns[dropped:], add_generation_prompt=True, tokenize=False
        )
        # The template has written the one BOS already.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + new <= context or dropped + 2 >= len(turns):
            break
        dropped += 2
    if len(ids) >= context:
        raise ValueError(
            f"The prompt has {len(ids):,} tokens, and question and answer together may "
            f"have {context:,}: shorten it."
        )
    if dropped:
        print(
            f"the first {dropped} of {len(turns)} turns are left out: with {new} more "
            f"tokens the conversation would not fit into {context:,}"
        )
    return ids
