"""TRL's SFT trainer, which can also train on the fast path."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from colab_utils.training.recovery import Recovery, ran_out


class FastSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer` with seven changes; the loss and its gradient are the same.

    - No step has learning rate 0: TRL's warmup begins with one. This class leaves it
      out, so n steps have the learning rates of TRL's steps 2 to n + 1.
    - Packing may leave a short sequence in an epoch. An update with less
      than half of the usual trained tokens moves the weights by less: its gradient is
      the sum over its tokens, divided by the usual number of tokens.
    - On the fast path (`training.use_fast_path`) there are never logits of all tokens,
      from which TRL computes its metrics after each step. This class then logs
      `num_tokens` and `mean_token_accuracy` from the fast path's own output, and no
      `entropy`.
    - The active adapter is saved, without embeddings. Otherwise PEFT asks the Hub, at
      each checkpoint, whether the base model's vocabulary has another size, and the
      Hub's library looks for a token and asks Colab's secrets.
    - A resumed run goes on counting `num_tokens`: the count is part of the checkpoint.
      TRL's own begins again at 0.
    - The adapter of a `PeftModel` keeps its weights. TRL rounds those of a quantized
      model to bfloat16 while it builds the trainer.
    - If the memory runs out in a step, the step begins again with less memory: once,
      and with a printed line. The next time, `train` raises MemoryError.
    """

    fast_path = False  # `training.use_fast_path` sets it

    @property
    def _total_train_tokens(self) -> int:
        """The count of `num_tokens`, kept where a checkpoint saves it."""
        return self.state.num_input_tokens_seen

    @_total_train_tokens.setter
    def _total_train_tokens(self, tokens: int) -> None:
        self.state.num_input_tokens_seen = tokens

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        model = kwargs.get("model", args[0] if args else None)
        named = model.named_parameters() if isinstance(model, PeftModel) else []
        kept = {n: p.detach().clone() for n, p in named if p.requires_grad}
        super().__init__(*args, **kwargs)
        for name, weight in kept.items():
            cast("PeftModel", model).get_parameter(name).data = weight
        self.recovery = Recovery(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does; raise MemoryError with numbers if the memory runs out."""
        try:
            return super().train(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            message = self.recovery.message(error)
        finally:
            self.recovery.start = None
            _free_embeddings(cast("torch.nn.Module", self.model))
        # Not in the block above: a notebook keeps an error with the one that led to it,
        # and that one would hold the tensors of the step.
        raise MemoryError(message)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the micro-batches of an update, and their trained tokens."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.recovery.begin(found[0])
        return found

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

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Compute the gradient of a micro-batch; return its share of the mean loss.

        A small update (see the class) divides the sum of its losses by the usual number
        of trained tokens. The returned loss, which is logged, is still their mean. If
        the memory runs out, the earlier micro-batches of the update are computed again.
        """

        def step(batch: dict[str, Any]) -> torch.Tensor:
            return self._micro_batch(model, batch, num_items_in_batch)

        def again() -> torch.Tensor:
            for earlier in self.recovery.earlier(inputs):
                step(earlier)
            return step(inputs)

        def less() -> str:
            return self.recovery.checkpoint_more(self.recovery.largest())

        return self.recovery.run(lambda: step(inputs), less, again)

    def _micro_batch(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        count, usual = num_items_in_batch, self.usual_tokens
        several = self.args.n_gpu > 1  # then `count` has a number for each GPU
        if count is None or several or 2 * count >= usual:
            return super().training_step(model, inputs, count)
        count = torch.as_tensor(count)
        loss = super().training_step(model, inputs, torch.full_like(count, usual))
        return loss * (usual / count)

    @functools.cached_property
    def usual_tokens(self) -> int:
        """The average number of trained tokens in an update; 0 if it is unknown."""
        data = self.train_dataset
        if not isinstance(data, Dataset):
            return 0
        masks = {"assistant_masks", "completion_mask"} & set(data.column_names)
        if not masks:
            return 0
        trained = sum(map(sum, data[min(masks)]))
        rows = self._train_batch_size * self.args.gradient_accumulation_steps
        rows *= self.args.world_size  # a process for each GPU
        return round(trained * rows / len(data))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule for one step more, without its first step."""
        known = self.lr_scheduler is not None
        if known or not self.args.get_warmup_steps(num_training_steps):
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
        if isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [_one_later(rate) for rate in scheduler.lr_lambdas]
            _set_rates(scheduler)
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also set the learning rate to that of this run's schedule.

        The optimizer of the checkpoint has the rate of the earlier run, which may have
        had fewer epochs.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and isinstance(self.lr_scheduler, LambdaLR):
            _set_rates(self.lr_scheduler)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        model = self.model
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        save = functools.partial(
            model.save_pretrained,
            save_embedding_layers=False,
            selected_adapters=[model.active_adapter],
        )
        vars(model)["save_pretrained"] = save  # before the method of the class
        try:
            super()._save(output_dir, state_dict)
        finally:
            del vars(model)["save_pretrained"]

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


class OwnBatchesTrainer(FastSFTTrainer):
    """A trainer whose `data_collator` reads the rows as they are.

    The loss is a mean over a batch's rows; the trainer divides it by the accumulation.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = kwargs.get("args")
        if isinstance(settings, SFTConfig):
            settings.remove_unused_columns = False
            settings.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def _free_embeddings(model: torch.nn.Module) -> None:
    """Let bitsandbytes forget the embeddings of a model that was trained.

    transformers' trainer registers them with each optimizer in 8 bits, and bitsandbytes
    would hold them until Python ends: 250 MiB of Llama 2 7B for each training.
    """
    if "bitsandbytes" not in sys.modules:
        return
    from bitsandbytes import optim

    # It has no __all__, so mypy can't find this.
    manager = optim.GlobalOptimManager.get_instance()  # type: ignore[attr-defined]
    own = set(model.modules())
    manager.module_weight_config_triple = [
        entry for entry in manager.module_weight_config_triple if entry[0] not in own
    ]


def _one_later(rate: Callable[[int], float]) -> Callable[[int], float]:
    def later(step: int) -> float:
        return rate(step + 1)

    return later


def _set_rates(scheduler: LambdaLR) -> None:
    """Set the optimizer's learning rates to the schedule's at its present step."""
    scheduler._last_lr = [
        base * rate(scheduler.last_epoch)
        for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    groups = zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True)
    for group, rate in groups:
        group["lr"] = rate
