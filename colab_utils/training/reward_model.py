"""A reward model: a Llama with an adapter and a head that scores answers.

It learns from pairs with the loss of Bradley and Terry (1952): the first of two answers
is the better one with the probability sigmoid(difference of their scores).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from colab_utils import models, runtime
from colab_utils.fast import lora, patch
from colab_utils.training.preferences import PairTrainer
from colab_utils.training.sft import OwnBatchesTrainer
from colab_utils.training.trainer import model_of
from colab_utils.weights.classifier import WEIGHT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "score_head.safetensors"


class ScoreHead(torch.nn.Module):
    """A linear layer from hidden states to scores, always float32 and never quantized.

    It has no bias, which no difference of two scores depends on, and begins with zeros.
    """

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(outputs, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the scores (..., outputs) of hidden states (..., width)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float())


def hidden_states(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the normed output of the last layer (rows, tokens, width).

    Like `model(...)` in training, this runs on the fast path if that is on and the
    model is in training mode; padding gets zeros then. No logits are computed.
    """
    if model.training and _has_fast_path(model):
        flat = patch.final_states(lora.llama(model), ids, mask)
        blank = flat.new_zeros(*ids.shape, flat.shape[-1])
        return blank.masked_scatter(mask.bool()[..., None], flat)
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    output = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    states: torch.Tensor = output.last_hidden_state
    return states


def last_hidden(
    model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Return the hidden states (rows, width) of each row's last token in the mask."""
    if model.training and _has_fast_path(model):
        places = mask.sum(1).cumsum(0) - 1
        return patch.final_states(lora.llama(model), ids, mask, places)
    last = (torch.arange(ids.shape[1], device=ids.device) * mask.bool()).argmax(1)
    return hidden_states(model, ids, mask)[torch.arange(len(ids)), last]


def _has_fast_path(model: torch.nn.Module) -> bool:
    inner = lora.find_llama(model)
    return inner is not None and patch.FastPath.of(inner) is not None


@torch.no_grad()
def score(
    model: PreTrainedModel,
    head: ScoreHead,
    rows: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> torch.Tensor:
    """Return the scores (rows,) of prompts with answers, as lists of token ids.

    With a head of several outputs they are (rows, outputs). Raises ValueError for a row
    without tokens.
    """
    if empty := [number for number, row in enumerate(rows, 1) if not len(row)]:
        raise ValueError(
            f"Row {empty[0]} has no token, so there is no last one to read: give each "
            "row its prompt and the EOS token."
        )
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = torch.zeros(len(rows), len(head.weight))
    with models.in_mode(model, training=_has_fast_path(model)):
        for start in runtime.progress(range(0, len(rows), batch_size), "scoring"):
            batch = order[start : start + batch_size]
            parts = [torch.tensor(rows[i], device=model.device) for i in batch]
            ids = pad_sequence(parts, batch_first=True, padding_value=-1)
            mask = ids != -1
            found[batch] = head(last_hidden(model, ids * mask, mask)).cpu()
    return found[:, 0] if len(head.weight) == 1 else found


def save_head(head: ScoreHead, folder: Path) -> None:
    """Write the head to a file next to the adapter."""
    weight = head.weight.detach().cpu().contiguous()
    save_file({WEIGHT: weight}, folder / FILE, {"format": "pt"})


def load_head(folder: Path) -> ScoreHead:
    """Return the head of a folder; raises FileNotFoundError if it has none."""
    if not (file := folder / FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {FILE}, so it is not a reward model: train one, or "
            "choose another folder."
        )
    weight = load_file(file)[WEIGHT]
    head = ScoreHead(weight.shape[1], len(weight))
    head.weight.data = weight.float()
    return head


@contextmanager
def use_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Make the adapter `name` the active one, which is trainable, in this block."""
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)


def pair_loss(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Return the losses (pairs,) of the scores of better and worse answers."""
    return -F.logsigmoid(better - worse)


class HeadTrainer(OwnBatchesTrainer):
    """The part of a trainer of an adapter and a `ScoreHead` that the loss leaves open.

    The head is a part of the model only during `train`, for the optimizer, the clipping
    of gradients and the checks. Checkpoints and `save_model` have it next to the
    adapter.
    """

    def __init__(self, *args: Any, head: ScoreHead, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = head.to(model_of(self).device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL's trainers do; resume with `resume_from_checkpoint`."""
        model = model_of(self)
        model.add_module("score_head", self.head)
        try:
            return super().train(*args, **kwargs)
        finally:
            del model.score_head

    def outputs(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the head's outputs (rows, outputs) at the rows' last tokens."""
        with self.accelerator.autocast():
            hidden = last_hidden(model, inputs["input_ids"], inputs["attention_mask"])
        return self.head(hidden)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        save_head(self.head, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        self._read_head(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._read_head(str(self.state.best_model_checkpoint))

    def _read_head(self, checkpoint: str) -> None:
        self.head.load_state_dict(load_head(Path(checkpoint)).state_dict())


class FastRewardTrainer(HeadTrainer, PairTrainer):
    """Train an adapter and a `ScoreHead` on pairs of answers, on the fast path.

    The dataset is made of `pairs.tokenize`.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a batch's pairs, and log what TRL logs."""
        better, worse = self.outputs(model, inputs)[:, 0].chunk(2)
        loss, margins = pair_loss(better, worse).mean(), (better - worse).detach()
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["mean_reward"].append((better + worse).mean().item() / 2)
        metrics["accuracy"].append((margins > 0).float().mean().item())
        metrics["margin"].append(margins.mean().item())
        return (loss, {"margins": margins}) if return_outputs else loss
