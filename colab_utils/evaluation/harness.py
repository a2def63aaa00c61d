"""EleutherAI's lm-evaluation-harness, with this course's scoring and decoding.

`Model` is the class that the harness asks. The harness is an extra: `pip install
lm-eval`. `tasks` writes tasks for it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import generation
from colab_utils.evaluation import tasks
from colab_utils.evaluation.likelihood import log_likelihoods
from colab_utils.generation.answering import complete
from colab_utils.generation.prompts import context_length
from colab_utils.generation.sampling import sampler

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: the evaluation harness is missing. Run `%pip install "
        "lm-eval==0.4.13` in a new cell, then restart the session."
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

MAX_NEW_TOKENS = 256  # where a task names no limit, as in the harness


class Model(TemplateLM):
    """A model and its tokenizer, as the harness asks them.

    Its answers are those of the harness's own class for transformers, `HFLM`. It is
    faster, because a beginning that requests share is read once (`likelihood`).
    `batch_size` is the number of texts that are generated at the same time.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, batch_size: int = 32
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = batch_size
        self.max_length = context_length(model)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: BOS, or EOS if there is none."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's folder or repository, for the harness's caches."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation in the model's chat format, up to the answer.

        `tasks.NEXT_TURN` divides the last turn into turns of user and assistant.
        """
        if not add_generation_prompt:
            raise ValueError(
                "This task begins the model's answer, which needs a chat template that "
                "can be continued: run it without apply_chat_template."
            )
        *before, last = chat_history
        texts = last["content"].split(tasks.NEXT_TURN)
        roles = itertools.cycle(["user", "assistant"])
        turns = [{"role": next(roles), "content": text} for text in texts]
        return generation.prompt_text(self.tokenizer, [*before, *turns])

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the token ids of a text; a BOS token that it begins with stays one."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        ids: list[int] = self.tokenizer(
            string, add_special_tokens=add_special_tokens, verbose=False
        )["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        found = log_likelihoods(self.model, [(c, w) for _, c, w in requests])
        for (texts, *_ids), likelihood in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, tuple(likelihood))
        return [(one.total, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each whole text, in nats.

        A text longer than the context is read in windows.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for part in map(make_disjoint_window, parts):
                windows.append(part)
                owners.append(number)
        totals = [0.0] * len(requests)
        found = log_likelihoods(self.model, windows)
        for owner, likelihood in zip(owners, found, strict=True):
            totals[owner] += likelihood.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Return what the model writes after each context, up to a stop string.

        A context that leaves no room for the new tokens loses its first ones.
        """
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings = json.dumps(request.args[1], sort_keys=True)
            groups.setdefault(settings, []).append(number)
        for members in groups.values():
            given = dict(
                normalize_gen_kwargs(requests[members[0]].args[1], MAX_NEW_TOKENS)
            )
            stop, limit = given.pop("until"), given.pop("max_gen_toks")
            if not given["do_sample"]:
                given = {}  # greedy decoding has no temperature
            room = self.max_length - limit
            if room < 1:
                raise ValueError(
                    f"The task asks for {limit:,} new tokens, but the model's context "
                    f"has {self.max_length:,}: lower max_gen_toks."
                )
            ids = [self.tok_encode(requests[i].args[0])[-room:] for i in members]
            texts = complete(
                self.model,
                self.tokenizer,
                ids,
                [limit] * len(ids),
                sampler(**given),
                [s for s in stop if s],
                self.batch_size,
            )
            for i, text in zip(members, texts, strict=True):
                found[i] = text.finish(strip=False)
                self.cache_hook.add_partial(
                    "generate_until", requests[i].args, found[i]
                )
        return found


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars that the harness draws, also where nobody watches.

    Bars and warnings go to stderr; errors are raised as usual.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def save(found: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write what `lm_eval.simple_evaluate` returned, as the harness's own program does.

    The files are in `folder/name`: results_<date>.json, and the samples of each task.
    Returns their paths. Raises OSError if one was not written to its end: the harness
    itself only logs that.
    """
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name = name
    tracker.general_config_tracker.model_name_sanitized = name
    samples = found["samples"]
    results = {key: value for key, value in found.items() if key != "samples"}
    tracker.save_results_aggregated(results, samples)
    for task, some in samples.items():
        tracker.save_results_samples(task, some)
    date = getattr(tracker, "date_id", "")
    lines = {
        f"samples_{task}_{date}.jsonl": len(some) for task, some in samples.items()
    }
    files = [folder / name / one for one in (f"results_{date}.json", *lines)]
    for file in files:
        if not _is_whole(file, lines.get(file.name)):
            raise OSError(f"{file} was not written to its end: is the disk full?")
    return files


def _is_whole(file: Path, lines: int | None) -> bool:
    """Return whether a file is one JSON value, or has so many `lines` of JSON."""
    if not file.is_file():
        return False
    text = file.read_text("utf-8")
    try:
        values = [json.loads(one) for one in text.splitlines()] if lines else []
        return len(values) == lines if lines is not None else bool(json.loads(text))
    except ValueError:
        return False
