"""Fine-tune a model with a trainer of TRL or transformers.

Read in this order: `trainer` (precision, fast path, progress), `gradient_checkpointing`
(of the reference path), `checkpoints` (resume), `saving` (the result), `measuring`
(memory of a step, tensor by tensor), `overflow` (of float16), `parallel`, `watching`
and `process` (several GPUs). `sft` (TRL's trainer with the fast path, and `recovery`
when the memory runs out), `preferences` (DPO on it, with the batches of `pairs`),
`reward_model` (a head that scores answers), `rewards` (GRPO and PPO, with the formulas
of `objectives`, the answers of `rollouts` and their `rollout_parts`), `callbacks` and
`progress` subclass library classes. They load torch and transformers, so this
subpackage does not re-export them: import these by their names.
"""

from colab_utils.training.checkpoints import remove_checkpoints, resume_point
from colab_utils.training.measuring import memory_held
from colab_utils.training.overflow import activation_range
from colab_utils.training.saving import save
from colab_utils.training.trainer import (
    float32_adapters,
    precision,
    prepare,
    prepare_fast_path,
    settings,
    show_progress,
    use_fast_path,
    use_reference_path,
)

__all__ = [
    "activation_range",
    "float32_adapters",
    "memory_held",
    "precision",
    "prepare",
    "prepare_fast_path",
    "remove_checkpoints",
    "resume_point",
    "save",
    "settings",
    "show_progress",
    "use_fast_path",
    "use_reference_path",
]
