"""Keep the work of a training: when it is interrupted, and when the disk is full."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from colab_utils import locks, runtime, workspace
from colab_utils.memory.costs import OPTIMIZER_BYTES
from colab_utils.training import checkpoints

if TYPE_CHECKING:
    from types import FrameType

    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

# torch.save raises RuntimeError when it can't create its zip file, or write all of it.
TORCH_WRITES = re.compile(
    r"inline_container|PytorchStreamWriter|unexpected pos"
    r"|Parent directory .* does not exist|cannot be opened"
)
REST = 32 * 2**20  # bytes of a checkpoint beside its tensors: mostly the tokenizer


def keep_work(trainer: Trainer) -> None:
    """Let a training survive a checkpoint that can't be saved, and save when stopped.

    The folder of the checkpoints is locked while the training runs: no other process
    can train there. Before the first step a line tells if the disk lacks space for two
    checkpoints. A failed save is told, and its half-written folder is removed. An
    interrupt (Ctrl-C, or the stop button) ends the training after the step that runs,
    with a checkpoint, and raises KeyboardInterrupt then; a second one stops at once.
    With several processes all of this is left to their launcher.
    """
    if trainer.args.world_size > 1:
        return
    stop, folder = SaveAndStop(trainer), Path(str(trainer.args.output_dir)).absolute()
    trainer.add_callback(stop)
    save, train = trainer._save_checkpoint, trainer.train
    # transformers has no event around these, and the course trains with the trainers of
    # TRL, so they are replaced in this one object. TRL would write a card beside the
    # checkpoints at each save: in a folder that it makes anew if the disk is gone.
    for name, replaced in {
        "create_model_card": lambda *args, **given: None,
        "_save_checkpoint": functools.partial(_save_or_go_on, stop, save),
        "train": functools.partial(_train_until_stopped, stop, folder, train),
    }.items():
        setattr(trainer, name, replaced)


class SaveAndStop(TrainerCallback):
    """Once `asked`, save a checkpoint after the step that runs, and stop.

    Before the first step it checks that the disk has space for two checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.asked = trainer, False
        self.lock: int | None = None  # of the folder of the checkpoints

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Print what is missing, if the disk is too small."""
        parent, one = Path(str(args.output_dir)), size(self.trainer)
        needed = one * (2 - len(checkpoints.numbered(parent)))
        if needed > (free := _free(parent)):
            print(
                f"Two checkpoints take 2 x {one / runtime.GIB:.2f} GiB, and "
                f"{parent} has {free / runtime.GIB:.2f} GiB free: "
                f"{(needed - free) / runtime.GIB:.2f} GiB are missing. The training "
                "goes on, but a disconnect may lose its work. Delete files, such as "
                "the checkpoints of trainings that have ended.",
                flush=True,
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Ask the trainer to save and to stop."""
        if self.asked:
            control.should_save = control.should_training_stop = True


def _train_until_stopped(
    stop: SaveAndStop, folder: Path, train: Any, *args: Any, **given: Any
) -> Any:
    stop.asked = False
    with locks.locked(folder) as stop.lock, _first_interrupt_asks(stop):
        result = train(*args, **given)
    if stop.asked:
        raise KeyboardInterrupt
    return result


@contextlib.contextmanager
def _first_interrupt_asks(stop: SaveAndStop) -> Iterator[None]:
    """Let the first interrupt ask `stop`; the next one acts as before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted, and may choose what happens
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_: int, __: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)
        print(
            "Stopping after this step, with a checkpoint. Interrupt again to stop at "
            "once, without one.",
            flush=True,
        )

    if callable(before):
        signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save_or_go_on(stop: SaveAndStop, save: Any, *args: Any, **given: Any) -> None:
    """Save a checkpoint; if that fails, say why, and leave none."""
    trainer = stop.trainer
    parent = Path(str(trainer.args.output_dir)).absolute()
    folder = parent / f"checkpoint-{trainer.state.global_step}"
    _make_room(trainer, parent)
    try:
        locks.check(parent, stop.lock)  # `save` would create folders on another disk
        save(*args, **given)
        checkpoints.write_hashes(folder)
        locks.check(parent, stop.lock)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not TORCH_WRITES.search(str(error)):
            raise
        if folder.exists():
            workspace.discard(folder, ignore_errors=True)
        _remove_created(parent, stop.lock)
        print(_not_saved(trainer, parent, error), flush=True)


def _remove_created(folder: Path, lock: int | None) -> None:
    """Remove the empty folders that a save has created where a disk has disappeared.

    They would hide that it is missing from what is saved next.
    """
    try:
        locks.check(folder, lock)
    except FileNotFoundError:
        with contextlib.suppress(OSError):  # the first that is not empty
            for one in (folder, *folder.parents):
                one.rmdir()


def _make_room(trainer: Trainer, parent: Path) -> None:
    """Remove the oldest of several checkpoints if there is no room for another."""
    older = checkpoints.numbered(parent)
    if len(older) > 1 and _free(parent) < size(trainer):
        print(f"The disk is nearly full: {older[0].name} is removed before the next.")
        workspace.discard(older[0], ignore_errors=True)


def size(trainer: Trainer) -> int:
    """Return the bytes that a checkpoint takes at most.

    Its tensors are the trained weights and the states of the optimizer. Before its
    first step, an optimizer that `memory` does not know counts as AdamW in float32.
    """
    optimizer: Any = trainer.optimizer
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    states = (value for state in optimizer.state.values() for value in state.values())
    held = [value.nbytes for value in states if hasattr(value, "nbytes")]
    if not held:
        kind = OptimizerNames(trainer.args.optim).value
        each = OPTIMIZER_BYTES.get(kind, max(OPTIMIZER_BYTES.values()))
        held = [round(each * weight.numel()) for weight in weights]
    return sum(weight.nbytes for weight in weights) + sum(held) + REST


def _not_saved(trainer: Trainer, parent: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    older = checkpoints.numbered(parent)
    newest = f"the newest is {older[-1].name}" if older else "there is none yet"
    return (
        f"The checkpoint of step {trainer.state.global_step} could not be saved in "
        f"{parent}: {reason}. It takes {size(trainer) / runtime.GIB:.2f} GiB, and "
        f"{_free(parent) / runtime.GIB:.2f} GiB are free; {newest}. The training goes "
        "on, and tries again in a minute: free some space until then."
    )


def _free(folder: Path) -> int:
    """Return the free bytes of a folder's disk; 0 if it can't be asked."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    with contextlib.suppress(OSError):
        return shutil.disk_usage(there).free
    return 0
