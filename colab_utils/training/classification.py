"""Classification of texts: a Llama with an adapter and a head with an output a class.

The head reads the hidden state of a text's last token, as transformers'
`AutoModelForSequenceClassification` does, so the merged model loads there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from colab_utils import data, runtime
from colab_utils.training.log_probs import pad
from colab_utils.training.reward_model import HeadTrainer, ScoreHead, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def classes(rows: Sequence[data.Row]) -> list[str]:
    """Return the labels of classification rows, sorted.

    Raises ValueError for rows of another kind, and if there are fewer than two labels.
    """
    for number, row in enumerate(rows, 1):
        if (kind := data.kind_of(row)) != "classification":
            raise ValueError(
                f"Line {row.get('line', number)} is a {kind} row, but a classifier "
                "learns from `text` and `label`: choose a classification dataset."
            )
    found = sorted({row["label"] for row in rows})
    if len(found) < 2:
        only = f"all {len(rows):,} have {found[0]!r}" if found else "there are no rows"
        raise ValueError(
            f"A classifier tells two labels or more apart, but {only}: add rows of "
            "other labels."
        )
    return found


def tokenize(
    rows: Sequence[data.Row], tokenizer: Tokenizer, names: Sequence[str], longest: int
) -> list[dict[str, Any]]:
    """Return each row's tokens and the number of its label among `names`.

    {"input_ids": [...], "label": 3}. A text is cut after `longest` tokens. The label is
    -1 if it is not among the names: no prediction is right then. Printed lines count
    both. Raises ValueError for a text without tokens, and if `longest` is below 1.
    """
    if longest < 1:
        raise ValueError(f"A text is cut after {longest} tokens: keep 1 or more.")
    numbers = {name: number for number, name in enumerate(names)}
    found: list[dict[str, Any]] = []
    cut = 0
    for row in runtime.progress(rows, "tokenizing"):
        ids = data.encodings(row, tokenizer)[0]["input_ids"]
        if not ids:
            raise ValueError(
                f"The text of line {row.get('line', len(found) + 1)} has no token, so "
                "there is no last one to read: remove the row."
            )
        cut += len(ids) > longest
        label = numbers.get(row["label"], -1)
        found.append({"input_ids": ids[:longest], "label": label})
    if cut:
        print(f"{cut:,} texts of {len(rows):,} are cut after {longest:,} tokens")
    unknown = {row["label"] for row in rows} - numbers.keys()
    if unknown:
        print(
            f"no training row has the label {min(unknown)!r}"
            + (f" or {len(unknown) - 1} others" if len(unknown) > 1 else "")
            + f": {sum(row['label'] == -1 for row in found):,} rows count as wrong"
        )
    return found


def probabilities(
    model: PreTrainedModel, head: ScoreHead, rows: Sequence[dict[str, Any]]
) -> torch.Tensor:
    """Return the probabilities (rows, classes) of rows of `tokenize`."""
    found = score(model, head, [row["input_ids"] for row in rows])
    return found.softmax(-1)


class FastClassificationTrainer(HeadTrainer):
    """Train an adapter and a `ScoreHead` on labeled texts, on the fast path.

    The dataset is made of `tokenize`, and the loss is the cross-entropy of the labels.
    """

    def __init__(self, *args: Any, head: ScoreHead, **kwargs: Any) -> None:
        """Raise ValueError for a row without a label of the head."""
        labels = kwargs["train_dataset"]["label"]
        if outside := [n for n in labels if not 0 <= n < len(head.weight)]:
            raise ValueError(
                f"{len(outside):,} rows have a label such as {outside[0]}, but the "
                f"head's {len(head.weight)} classes are numbered from 0: tokenize the "
                "rows with the names of the training rows."
            )
        kwargs["data_collator"] = collate
        super().__init__(*args, head=head, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a batch's texts, and log the accuracy."""
        found, labels = self.outputs(model, inputs), inputs["label"]
        loss = F.cross_entropy(found, labels)
        metrics = self._metrics["train" if model.training else "eval"]
        right = (found.argmax(-1) == labels).float().mean().item()
        metrics["accuracy"].append(right)
        return (loss, {"logits": found}) if return_outputs else loss


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return ids and mask (rows, tokens) and labels (rows,) of rows of `tokenize`."""
    ids = [row["input_ids"] for row in rows]
    batch = pad(ids, [[0] * len(one) for one in ids])
    del batch["labels"]
    return batch | {"label": torch.tensor([row["label"] for row in rows])}
