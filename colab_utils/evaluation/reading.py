"""What a base model thinks of rows: a vector of each text, and each answer's loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils import data, models, runtime

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

BATCH = 64  # texts
LONGEST = 512  # tokens of a text that are read


def embeddings(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: list[str],
    layer: int | None = None,
) -> NDArray[np.float32]:
    """Return a vector for each text: the mean of a layer's hidden states.

    The shape is (texts, width of the model). Without `layer` it is the middle one: the
    last layers are about the next token. A text is read up to 512 tokens.
    """
    import numpy as np
    import torch

    ids = tokenizer(texts, truncation=True, max_length=LONGEST, verbose=False)
    ids = ids["input_ids"]
    if layer is None:
        layer = model.config.num_hidden_layers // 2
    found = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode(), models.in_mode(model, training=False):
        for rows in _by_length(list(map(len, ids)), "reading texts"):
            batch, real = _padded([ids[i] for i in rows], model)
            output = model(
                input_ids=batch,
                attention_mask=real,
                output_hidden_states=True,
                logits_to_keep=1,
            )
            states = output.hidden_states[layer].float() * real[..., None]
            means = states.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
            found[rows] = means.cpu().numpy()
    return found


@dataclass(frozen=True)
class Difficulty:
    """How hard each row's answer is for a model, in nats a token.

    `loss` is that of the answer after its prompt, and `alone` that of the answer
    without a prompt. Their ratio is IFD (Li et al. 2023, "From Quantity to Quality"):
    the prompt of a row with a ratio of 1 or more does not help the model.
    """

    loss: NDArray[np.float32]
    alone: NDArray[np.float32]

    @property
    def ifd(self) -> NDArray[np.float32]:
        """Return the ratio of the two losses."""
        import numpy as np

        return self.loss / np.maximum(self.alone, 1e-6)


def difficulty(
    model: PreTrainedModel, tokenizer: Tokenizer, rows: list[data.Row]
) -> Difficulty:
    """Return the losses of all answers; each row is a conversation with an answer."""
    tokens = data.tokenize(rows, tokenizer)
    return Difficulty(
        _losses(model, tokens), _losses(model, [_answer_alone(row) for row in tokens])
    )


def _answer_alone(row: data.Tokens) -> data.Tokens:
    """Return the trained tokens behind the row's first token, such as `<s>`."""
    pairs = zip(row["input_ids"], row["assistant_masks"], strict=True)
    answer = [token for token, trained in pairs if trained]
    return {
        "input_ids": [row["input_ids"][0], *answer],
        "assistant_masks": [0, *[1] * len(answer)],
    }


def _losses(model: PreTrainedModel, tokens: list[data.Tokens]) -> NDArray[np.float32]:
    """Return each row's mean cross-entropy of its trained tokens."""
    import numpy as np
    import torch

    found = np.zeros(len(tokens), dtype=np.float32)
    lengths = [len(row["input_ids"]) for row in tokens]
    with torch.inference_mode(), models.in_mode(model, training=False):
        for rows in _by_length(lengths, "reading answers"):
            ids, real = _padded([tokens[i]["input_ids"] for i in rows], model)
            mask, _ = _padded([tokens[i]["assistant_masks"] for i in rows], model)
            logits = model(input_ids=ids, attention_mask=real).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), ids[:, 1:], reduction="none"
            )
            trained = mask[:, 1:]
            mean = (loss * trained).sum(1) / trained.sum(1).clamp(min=1)
            found[rows] = mean.cpu().numpy()
    return found


def _by_length(lengths: list[int], label: str) -> Iterable[list[int]]:
    """Return batches of row numbers; rows of similar length share a batch."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return runtime.progress(batches, label)


def _padded(
    rows: list[list[int]], model: PreTrainedModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors (rows, longest): the numbers, and 1 where they are real."""
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    numbers = [torch.tensor(row) for row in rows]
    real = [torch.ones_like(row) for row in numbers]
    return (
        pad(numbers, batch_first=True).to(model.device),
        pad(real, batch_first=True).to(model.device),
    )
