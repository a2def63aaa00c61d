"""Generate tokens for a batch of prompts, and return their texts or stream one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from colab_utils import models, parameters, runtime
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.generation.answer_text import AnswerText, stop_strings
from colab_utils.generation.lookup import Lookup
from colab_utils.generation.prompts import (
    CONTEXT,
    Messages,
    as_messages,
    context_length,
    prompt_tokens,
)
from colab_utils.generation.sampling import greedy, sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from typing_extensions import Unpack

    from colab_utils.fast.decoder import ReferenceDecoder
    from colab_utils.fast.static_cache import StaticDecoder
    from colab_utils.generation.sampling import Sampler, Sampling


def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Iterable[str | Messages],
    max_new_tokens: int = 64,
    system: str = "",
    batch_size: int = 32,
    stop: str | Sequence[str] = (),
    **sampling: Unpack[Sampling],
) -> list[str]:
    """Return an answer to every prompt, a string or a conversation.

    Decoding is greedy, unless do_sample=True is given with temperature, top_k or top_p.
    An answer ends at a token of `models.stop_tokens`, before a string in `stop`, or
    after `max_new_tokens` tokens. A conversation that is too long loses its oldest
    turns, and a printed line reports it. Raises ValueError for a prompt that is longer
    than the model's context.
    """
    prompts = _check_prompts(prompts)
    max_new_tokens = parameters.number("max_new_tokens", max_new_tokens, 1, 10**9)
    batch_size = parameters.number("batch_size", batch_size, 1, 10**9)
    sample, stop = sampler(**sampling), stop_strings(stop)
    if not prompts:
        return []
    _report_ignored_settings(model)
    context = context_length(model)
    messages = [as_messages(prompt, system) for prompt in prompts]
    chats = Conversations(tokenizer)
    ids = [prompt_tokens(chats, turns, max_new_tokens, context) for turns in messages]
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in ids]
    texts = complete(model, tokenizer, ids, limits, sample, stop, batch_size)
    return [text.finish() for text in texts]


def complete(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    limits: list[int],
    sample: Sampler,
    stop: list[str],
    batch_size: int,
) -> list[AnswerText]:
    """Return the text that the model writes after each prompt of token ids.

    A text ends as in `answers`; a prompt has a limit of new tokens of its own.
    """
    from colab_utils.fast.decoder import make_decoder
    from colab_utils.generation.decoding import decode

    if not prompts:
        return []
    ends = models.stop_tokens(model, tokenizer)
    texts = [AnswerText(tokenizer, ends, stop, limit) for limit in limits]
    size = max(map(len, prompts)) + max(limits)
    with models.in_mode(model, training=False):
        decoder = make_decoder(model, min(batch_size, len(prompts)), size)
        done = decode(decoder, prompts, sample, lambda i, token: texts[i].add(token))
        for _ in runtime.progress(done, "answering", total=len(prompts)):
            pass
    return texts


def stream(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str | Messages,
    max_new_tokens: int = 256,
    system: str = "",
    stop: str | Sequence[str] = (),
    **sampling: Unpack[Sampling],
) -> Iterator[str]:
    """Yield one answer piece by piece; the arguments are those of `answers`.

    Each token yields a piece, which is "" while the token adds no text. Closing the
    generator stops the model. On a GPU the model keeps the memory for `CONTEXT` tokens
    until the next answer.
    """
    from colab_utils.fast.decoder import borrow_decoder

    max_new_tokens = parameters.number("max_new_tokens", max_new_tokens, 1, 10**9)
    sample, context = sampler(**sampling), min(context_length(model), CONTEXT)
    stop = stop_strings(stop)
    _report_ignored_settings(model)
    messages = as_messages(prompt, system)
    ids = prompt_tokens(Conversations(tokenizer), messages, max_new_tokens, context)
    limit = min(max_new_tokens, context - len(ids))
    ends = models.stop_tokens(model, tokenizer)
    answer = AnswerText(tokenizer, ends, stop, limit)
    with (
        models.in_mode(model, training=False),
        borrow_decoder(model, context) as decoder,
    ):
        shown = 0
        for _ in generate_tokens(decoder, ids, sample, answer):
            text = answer.stable_text()
            yield text[shown:]
            shown = len(text)


def generate_tokens(
    decoder: StaticDecoder | ReferenceDecoder,
    prompt: list[int],
    sample: Sampler,
    answer: AnswerText,
) -> Iterator[None]:
    """Add one token to an answer per iteration, until it is done."""
    for token in _next_tokens(decoder, prompt, sample):
        done = answer.add(token)
        yield
        if done:
            return


def _next_tokens(
    decoder: StaticDecoder | ReferenceDecoder, prompt: list[int], sample: Sampler
) -> Iterator[int]:
    """Yield the tokens that follow a prompt.

    With greedy decoding on a static cache, a step may also check guesses at the tokens
    after the next one, as `lookup` describes.
    """
    from colab_utils.fast.decoding_linears import READ
    from colab_utils.fast.static_cache import StaticDecoder

    tokens = sample(decoder.start([prompt]))
    if sample is not greedy or not isinstance(decoder, StaticDecoder):
        while True:
            yield int(tokens)
            tokens = sample(decoder.step(tokens))
    found = Lookup(prompt)
    while True:
        token = int(tokens)
        yield token
        found.add(token)
        guesses = found.guesses(READ - 1)
        if not guesses or decoder.sizes[0] + READ > decoder.size:
            tokens = sample(decoder.step(tokens))
            continue
        tokens = sample(decoder.read([token, *guesses]))
        pairs = zip(guesses, tokens[:-1].tolist(), strict=True)
        count = [*(one == other for one, other in pairs), False].index(False)
        decoder.accept(1 + count)
        for guess in guesses[:count]:
            yield guess
            found.add(guess)
        tokens = tokens[count : count + 1]


def _check_prompts(prompts: Iterable[str | Messages]) -> list[str | Messages]:
    """Return the prompts as a list; raise ValueError for a single prompt."""
    found = [] if isinstance(prompts, str) else list(prompts)
    if isinstance(prompts, str) or any(isinstance(prompt, dict) for prompt in found):
        raise ValueError("`answers` takes a list of prompts: put this one into a list.")
    return found


def _report_ignored_settings(model: PreTrainedModel) -> None:
    """Print the settings of the model's generation_config that have no effect here."""
    for name in ("repetition_penalty", "no_repeat_ngram_size"):
        value = getattr(model.generation_config, name, None)
        if value not in (None, 0, 1):
            print(f"not applied: {name} = {value} from the model's generation_config")
