"""Let a model answer: a batch of questions at once, or one answer as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from colab_utils import models, runtime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from colab_utils.fast.decoder import Plain, Static

Messages = list[dict[str, str]]
CONTEXT = 2048  # tokens of a conversation: 1 GiB of keys and values for Llama 2 7B


def as_messages(prompt: str | Messages, system: str = "") -> Messages:
    """A conversation that ends with the user: a plain string becomes its only turn.

    Raises ValueError for what is no conversation, or ends with the model's own words.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    good = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not good or not all(
        isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")
    ):
        raise ValueError(
            f"{turns!r:.80} is neither a text nor a conversation, a list of "
            '{"role": "user" or "assistant", "content": text}.'
        )
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["user"]:
        raise ValueError("A conversation must end with a turn of the user.")
    if system and "system" in roles:
        raise ValueError("There are two system prompts: one in the conversation.")
    return [{"role": "system", "content": system}, *turns] if system else turns


def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: list[str | Messages],
    max_new_tokens: int = 64,
    system: str = "",
    batch_size: int = 32,
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> list[str]:
    """Answer every prompt, greedily unless `sampling` says otherwise.

    `sampling` is do_sample=True with temperature, top_k, top_p. An answer ends at the
    end-of-sequence token, before one of the strings in `stop`, or after
    `max_new_tokens`. Raises ValueError for a prompt that is longer than the model's
    context; a conversation loses its oldest turns instead, with a note.
    """
    from colab_utils.fast import decoder as decoding

    prompts = prompts if isinstance(prompts, str) else list(prompts)
    if isinstance(prompts, str) or any(isinstance(prompt, dict) for prompt in prompts):
        raise ValueError("`answers` takes a list of prompts: put this one into a list.")
    runtime.check_range(max_new_tokens=(max_new_tokens, 1, 10**9))
    runtime.check_range(batch_size=(batch_size, 1, 10**9))
    choose, context, stop = _chooser(**sampling), _context(model), _stops(stop)
    if not prompts:
        return []
    _tell_ignored(model)
    chats = [as_messages(prompt, system) for prompt in prompts]
    ids = [_fit(tokenizer, chat, max_new_tokens, context) for chat in chats]
    # Prompts of similar length share a batch: as one ends, so do the others.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    room = [min(max_new_tokens, context - len(one)) for one in ids]
    size = len(ids[order[-1]]) + max(room)
    made = [""] * len(ids)
    with models.in_mode(model, training=False):
        decoder = decoding.decoder(model, min(batch_size, len(ids)), size)
        steps = range(0, len(order), decoder.rows)
        for start in runtime.progress(steps, "answering"):
            batch = order[start : start + decoder.rows]
            writers = [_Writer(model, tokenizer, stop, room[i]) for i in batch]
            for _ in _write(decoder, [ids[i] for i in batch], choose, writers):
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
    stop: str | Sequence[str] = (),
    **sampling: Any,
) -> Iterator[str]:
    """Yield an answer piece by piece, while it is made; `answers` says how it ends.

    A piece comes with every token, "" where that shows nothing yet. Who stops reading
    also stops the model. On a GPU its memory for `CONTEXT` tokens is
    kept for the next answer.
    """
    from colab_utils.fast import decoder as decoding

    runtime.check_range(max_new_tokens=(max_new_tokens, 1, 10**9))
    choose, context = _chooser(**sampling), min(_context(model), CONTEXT)
    stop = _stops(stop)
    _tell_ignored(model)
    ids = _fit(tokenizer, as_messages(prompt, system), max_new_tokens, context)
    writer = _Writer(model, tokenizer, stop, min(max_new_tokens, context - len(ids)))
    with (
        models.in_mode(model, training=False),
        decoding.reused(model, context) as decoder,
    ):
        shown = 0
        for _ in _write(decoder, [ids], choose, [writer]):
            text = writer.shown()
            yield text[shown:]
            shown = len(text)


def _write(
    decoder: Static | Plain,
    prompts: list[list[int]],
    choose: Callable[[torch.Tensor], torch.Tensor],
    writers: list[_Writer],
) -> Iterator[None]:
    """Add a token to each answer, again and again until all have ended."""
    scores = decoder.start(prompts)
    while True:
        tokens = choose(scores)
        for writer, token in zip(writers, tokens.tolist(), strict=True):
            writer.add(token)
        yield
        if all(writer.done for writer in writers):
            return
        scores = decoder.step(tokens)


class _Writer:
    """The text of an answer, while its tokens come; at most `room` of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        stop: list[str],
        room: int,
    ) -> None:
        ends = model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id}
        self.ends |= set(ends) if isinstance(ends, list) else {ends}
        self.stop, self.room, self.tokenizer = stop, room, tokenizer
        self.done, self.before = False, ""
        # Text that is settled, and the tokens after it: the first of them is its last
        # word, of `skip` characters.
        self.settled, self.tokens, self.skip = "", [], 0

    def add(self, token: int) -> None:
        """Take one more token, unless the answer has ended."""
        if self.done or token in self.ends:
            self.done = True
            return
        self.tokens.append(token)
        self.room -= 1
        self.done = not self.room or bool(self.stop and self._cut()[1])

    def _text(self) -> str:
        """All tokens as text. Those before the last word are not decoded again.

        A token of three letters or more is never part of a letter, nor of the spaces
        that decoding takes away, so what comes after it doesn't change it.
        """
        text = self.settled + self._decode(self.tokens)[self.skip :]
        word = self._decode(self.tokens[-1:])
        if len(word.strip()) > 2 and word.strip().isalpha():
            self.settled, self.tokens, self.skip = text, self.tokens[-1:], len(word)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _cut(self) -> tuple[str, bool]:
        """The text up to the first string that ends it, and whether there is one."""
        text = self._text()
        found = [i for s in self.stop if (i := text.find(s)) >= 0]
        return (text[: min(found)], True) if found else (text, False)

    def finish(self) -> str:
        """The whole answer; spaces around it are not part of it."""
        self.done = True
        return self._cut()[0].strip()

    def shown(self) -> str:
        """What of the text will stay, whatever comes next."""
        text, _ = self._cut()
        if not self.done:
            # it may end in half a letter, or in the beginning of what is not shown
            text = text.rstrip("\ufffd")
            begun = (s[:n] for s in self.stop for n in range(len(s) - 1, 0, -1))
            cut = max((len(part) for part in begun if text.endswith(part)), default=0)
            text = text[: len(text) - cut]
        # A broken byte also breaks those before it; what was shown stays.
        if text.strip().startswith(self.before):
            self.before = text.strip()
        return self.before


def _stops(stop: str | Sequence[str]) -> list[str]:
    """The strings that end an answer; an empty one ends none."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(
        isinstance(s, str) for s in stops
    ):
        raise ValueError(f"stop = {stop!r}, but it must be a text or a list of texts.")
    return [s for s in stops if s]


def _tell_ignored(model: PreTrainedModel) -> None:
    """Name what the model's own settings ask for and is not done here."""
    for name in ("repetition_penalty", "no_repeat_ngram_size"):
        value = getattr(model.generation_config, name, None)
        if value not in (None, 0, 1):
            print(f"not applied: {name} = {value} of the model's generation_config")


def _chooser(**given: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """How the next token is chosen from scores (rows, vocabulary)."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    kinds = {
        "temperature": lambda value: TemperatureLogitsWarper(float(value)),
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }
    given = {name: value for name, value in given.items() if value is not None}
    sample = given.pop("do_sample", False)
    if not isinstance(sample, bool):
        raise ValueError(f"do_sample = {sample!r}, but it must be True or False.")
    if unknown := given.keys() - kinds:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: sampling knows do_sample, "
            f"{', '.join(kinds)}, stop and max_new_tokens."
        )
    if not sample:
        if given:
            raise ValueError(
                f"{', '.join(given)} mean something only with do_sample=True: without "
                "it the likeliest token is always taken."
            )
        return lambda scores: scores.argmax(-1)
    if not given.get("temperature", 1) >= 1e-6:
        raise ValueError(
            f"temperature = {given['temperature']}, but it must be over 0; "
            "do_sample=False takes the likeliest token always."
        )
    if given.get("top_k") == 0:  # no limit
        del given["top_k"]
    warpers = [kind(given[name]) for name, kind in kinds.items() if name in given]

    def draw(scores: torch.Tensor) -> torch.Tensor:
        for warper in warpers:
            scores = warper(None, scores)
        return scores.softmax(-1).multinomial(1).squeeze(1)

    return draw


def _context(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", CONTEXT)


def _fit(tokenizer: Tokenizer, chat: Messages, new: int, context: int) -> list[int]:
    """Token ids of a conversation that leave room for `new` more, or half the context.

    Its oldest turns are left out where they must be, never the system prompt. Raises
    ValueError where the template refuses the conversation, or it is too long.
    """
    from jinja2 import TemplateError

    new = min(new, context // 2)
    system = [turn for turn in chat[:1] if turn["role"] == "system"]
    turns, dropped = chat[len(system) :], 0
    while True:
        try:
            text = tokenizer.apply_chat_template(
                system + turns[dropped:], add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ValueError(
                f"The chat template takes no such turns: {error}"
            ) from error
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
