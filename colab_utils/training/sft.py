"""TRL's SFT trainer, which can also train on the fast path."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer


class FastSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer`, unchanged until `training.use_fast_path` is called.

    TRL computes its metrics after each step from the logits of all tokens, which the
    fast path never has. On the fast path, this class logs `num_tokens` and
    `mean_token_accuracy` from the fast path's own output, and no `entropy`.
    """

    fast_path = False  # `training.use_fast_path` sets it

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss, and with `return_outputs` also the model's output."""
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        if not (self.fast_path and model.training) or own_loss:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
        # transformers' trainer computes the loss; TRL's own method needs the logits.
        loss, outputs = super(SFTTrainer, self).compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._log_step(inputs, outputs.token_accuracy)
        return (loss, outputs) if return_outputs else loss

    def _log_step(self, inputs: dict[str, Any], accuracy: torch.Tensor) -> None:
        """Log the metrics that TRL 0.29 would compute from the logits."""
        if "attention_mask" in inputs:
            count = inputs["attention_mask"].sum()
        else:  # packed rows, which have no padding
            count = torch.tensor(inputs["input_ids"].numel(), device=accuracy.device)
        gather, metrics = self.accelerator.gather_for_metrics, self._metrics["train"]
        self._total_train_tokens += gather(count).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["mean_token_accuracy"].append(gather(accuracy).mean().item())
