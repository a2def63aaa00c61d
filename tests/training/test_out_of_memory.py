"""The memory runs out in a training step: the result is that of the second plan."""

from __future__ import annotations

import weakref

import pytest
import torch
from helpers.training import ASKED, UPDATES, InBackward, cuda_error
from transformers import TrainerCallback, set_seed

from colab_utils import memory, training
from colab_utils.training.recovery import ran_out

CHECKPOINTED = 6  # layers of the demo model


def cpu_error() -> None:
    torch.empty(2**50)  # four petabytes


class InForward:
    """Calls a function instead of some forward passes, which are numbered from 1."""

    def __init__(self, trainer, *numbers: int, error=cuda_error) -> None:
        self.numbers, self.error, self.passes = numbers, error, 0
        self.compute = trainer.compute_loss
        trainer.compute_loss = self.compute_loss

    def compute_loss(self, *args, **kwargs):
        self.passes += 1
        if self.passes in self.numbers:
            self.error()
        return self.compute(*args, **kwargs)


def plan(recompute: int, fast: bool = True) -> memory.Plan:
    cost = memory.Memory(weights=3 * memory.GIB, reserve=memory.GIB)
    return memory.Plan(256, 2, recompute, 0, fast, cost)


@pytest.fixture
def begin(make_trainer):
    """Build a trainer with updates of two micro-batches, on the path of a plan."""

    def make(method: str, path: memory.Plan, **settings):
        trainer = make_trainer(method, **UPDATES | settings)
        training.float32_adapters(trainer)
        training.use_fast_path(trainer, path)
        return trainer

    return make


def results(trainer) -> tuple[list[dict], list[torch.Tensor]]:
    """Return what was logged, without the clock, and the trained weights."""
    times = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    logs = [
        {k: v for k, v in entry.items() if k not in times}
        for entry in trainer.state.log_history
    ]
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    return logs, [p.detach().clone() for p in trained]


def assert_close(found, expected, tolerance: float = 0) -> None:
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=0)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


PATHS = {"fast path": ("qlora", True), "reference path": ("qlora", False)}
PATHS |= {"full": ("full", False)}


@pytest.mark.slow
@pytest.mark.parametrize("error", [cuda_error, cpu_error])
@pytest.mark.parametrize(("method", "fast"), PATHS.values(), ids=PATHS)
def test_result_is_that_of_the_second_plan(begin, capsys, method, fast, error):
    """The second micro-batch fails: the second plan computes all, bit by bit."""
    expected = begin(method, plan(CHECKPOINTED, fast))
    expected.train()
    trainer = begin(method, plan(0, fast))
    planted = InBackward(trainer, 2, error=error)
    capsys.readouterr()
    trainer.train()
    assert planted.partial > 10  # else nothing could count twice
    assert_close(results(trainer), results(expected))
    (line,) = capsys.readouterr().out.splitlines()[:1]
    more = "2.00 GiB" if error is cuda_error else "4,194,304.00 GiB"
    assert line.startswith("RAM ran out in step 1: ")
    assert f" GiB were used, and {more} more were asked for. The step begins" in line
    assert line.endswith("gradient checkpointing for all 6 layers, which is slower.")


@pytest.mark.slow
@pytest.mark.parametrize("where", [InForward, InBackward])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_later_update_begins_again(begin, dropout, where):
    """Earlier updates have the first plan: it rounds differently on the fast path."""
    fast = not dropout  # which the fast path does not have
    expected, trainer = (begin("lora", plan(n, fast)) for n in (CHECKPOINTED, 0))
    for one in (expected, trainer):
        for module in one.model.modules():
            if isinstance(getattr(module, "lora_dropout", None), torch.nn.ModuleDict):
                for name in module.lora_dropout if dropout else ():
                    module.lora_dropout[name] = torch.nn.Dropout(dropout)
    set_seed(1)  # the dropout
    expected.train()
    planted = where(trainer, 4)
    set_seed(1)
    trainer.train()
    assert planted.passes == 8  # two again
    assert_close(results(trainer), results(expected), 1e-5 if fast else 0)


@pytest.mark.slow
def test_error_holds_no_tensor_of_the_step_when_it_begins_again(begin):
    trainer, seen, alive = begin("qlora", plan(0)), [], []
    compute = trainer.compute_loss

    def watched(*args, **kwargs):
        alive.append(sum(one() is not None for one in seen))
        loss = compute(*args, **kwargs)
        seen.append(weakref.ref(loss))
        return loss

    trainer.compute_loss = watched
    planted = InBackward(trainer, 2)
    trainer.train()
    assert planted.passes == 8 and alive == [0] * 8


@pytest.mark.slow
def test_second_time_stops_with_numbers(begin, capsys):
    trainer = begin("qlora", plan(3))
    InBackward(trainer, 2, 6)
    with pytest.raises(MemoryError) as error:
        trainer.train()
    assert capsys.readouterr().out.count("The step begins again") == 1
    text = str(error.value)
    assert text.startswith("RAM ran out in step 2: ")
    assert "and 2.00 GiB more were asked for. The plan was 3.00 GiB. " in text
    assert "micro-batch of the update has 4 x " in text
    assert "Another plan is tried only once, so the training ends. Use a sm" in text
    assert text.endswith("RANK or MODEL, or set MAX_TOKENS lower in 01_create_dataset.")
    assert error.value.__context__ is None  # it would hold the tensors of the step


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fast"), PATHS.values(), ids=PATHS)
def test_plan_that_cannot_need_less_stops_at_once(begin, capsys, method, fast):
    trainer = begin(method, plan(CHECKPOINTED, fast))
    InBackward(trainer, 2)
    with pytest.raises(MemoryError, match=r"in step 1: .* No plan needs less memory\."):
        trainer.train()
    assert "begins again" not in capsys.readouterr().out


class BeforeUpdate(TrainerCallback):
    """Runs out of memory before the optimizer's second update."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            cuda_error()


@pytest.mark.slow
def test_update_that_runs_out_of_memory_stops_with_numbers(begin):
    trainer = begin("qlora", plan(0))
    trainer.add_callback(BeforeUpdate())
    with pytest.raises(MemoryError, match=r"step 2: .* No other plan helps there\."):
        trainer.train()


@pytest.mark.slow
def test_other_errors_are_raised_as_they_are(begin):
    trainer = begin("qlora", plan(0))
    InBackward(trainer, 2, error=lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.train()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ASKED, True),
        ("CUDA error: out of memory", True),  # page-locked RAM
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", True),
        ("Triton Error [CUDA]: out of resource: shared memory", False),
        ("The size of tensor a (3) must match the size of tensor b (2)", False),
    ],
)
def test_ran_out_knows_the_errors_of_torch(text, expected):
    assert ran_out(RuntimeError(text)) is expected


def test_ran_out_knows_python_and_the_allocator_of_the_cpu():
    with pytest.raises(RuntimeError) as error:
        cpu_error()
    assert ran_out(error.value) and ran_out(MemoryError())
