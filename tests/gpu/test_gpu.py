"""Tests that need a GPU: float16, Triton, the attention kernel, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from helpers.decoding import assert_reads_several_tokens, assert_rows_leave_and_join
from helpers.families import CONFIGS, small_model
from helpers.llamas import gradients, packed, padded, with_lora
from helpers.training import InBackward, StopAt
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    TrainerCallback,
)

from colab_utils import data, demo, generation, memory, models, runtime, training
from colab_utils.data.tokens.rendering import Conversations
from colab_utils.fast import ops, patch
from colab_utils.fast.static_cache import StaticDecoder
from colab_utils.generation.prompts import prompt_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


@pytest.fixture(autouse=True)
def like_a_t4(monkeypatch):
    """Compute in float16 on any GPU, without flash attention."""
    monkeypatch.setattr(runtime, "dtype_for", lambda *_: ("float16", "like a T4"))
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.fixture(scope="module", params=[32, 8], ids=["7B", "grouped heads"])
def checkpoint(request, tmp_path_factory) -> str:
    """Save two layers of Llama 2 7B's shape, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=2, num_key_value_heads=request.param)
    folder = tmp_path_factory.mktemp("two-layers")
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    return str(folder)


def load_nf4(checkpoint: str, dtype: torch.dtype):
    """Return the NF4 model with an adapter, computing in `dtype`."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, device_map={"": 0}, quantization_config=config
    )
    return with_lora(model, target_modules="all-linear")


def on_gpu(batch: dict) -> dict:
    return {name: tensor.cuda() for name, tensor in batch.items()}


SCALE = 1024.0  # the loss is scaled, as the trainer scales it


def scaled(model, batch):
    """Return loss and gradients with autocast, as the trainer has it."""
    model.zero_grad()
    with torch.autocast("cuda", model.dtype, enabled=model.dtype != torch.float32):
        loss = model(**batch, use_cache=False).loss
    (loss * SCALE).backward()
    named = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return loss.item(), {n: p.grad.float() / SCALE for n, p in named}


@pytest.mark.parametrize("shape", ["padded", "packed"])
@pytest.mark.parametrize(("recompute", "tiles"), [(0, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize(
    ("dtype", "noise"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_apply_gradients_in_float16_and_bfloat16(
    checkpoint, shape, recompute, tiles, dtype, noise
):
    """Their error is at most 1.5 times PEFT's."""
    batch = padded([300, 17, 512, 190], vocabulary=32000)
    batch = on_gpu(packed(batch) if shape == "packed" else batch)
    _, exact = gradients(load_nf4(checkpoint, torch.float32), batch)
    model = load_nf4(checkpoint, dtype)
    reference_loss, reference = scaled(model, batch)
    assert patch.apply(model, recompute, tiles=tiles)
    fast_loss, fast = scaled(model, batch)
    assert fast_loss == pytest.approx(reference_loss, rel=noise)

    def error(found, name):
        return ((found[name] - exact[name]).norm() / exact[name].norm()).item()

    worst = {name: (error(fast, name), error(reference, name)) for name in exact}
    for name, (ours, pefts) in worst.items():
        assert ours < max(1.5 * pefts, noise) < 50 * noise, (name, ours, pefts)


@pytest.mark.parametrize("disk", [0, 1])
def test_apply_offload(checkpoint, disk):
    batch = on_gpu(packed(padded([300, 212], vocabulary=32000)))
    model = load_nf4(checkpoint, torch.float16)
    patch.apply(model, recompute=2)
    _, expected = scaled(model, batch)
    patch.apply(model, recompute=2, offload=2, disk=disk)
    _, found = scaled(model, batch)
    assert not model.get_base_model().model.embed_tokens.weight.is_cuda
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-6)
    model.eval().generate(input_ids=batch["input_ids"][:, :8], max_new_tokens=2)


def test_apply_separates_documents(checkpoint):
    model = load_nf4(checkpoint, torch.float16)
    patch.apply(model)
    batch = on_gpu(packed(padded([100, 157, 60], vocabulary=32000)))
    batch["labels"][0, :100] = -100
    before, _ = scaled(model, batch)
    batch["input_ids"][0, :100] = 7
    after, _ = scaled(model, batch)
    assert after == pytest.approx(before, rel=1e-5)


def test_dequantize_equals_bitsandbytes(checkpoint):
    import bitsandbytes.functional as bnb

    model = load_nf4(checkpoint, torch.float16)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "quant_state"):
            expected = bnb.dequantize_4bit(parameter.data, parameter.quant_state)
            found = torch.full_like(expected, float("nan"))
            ops.dequantize(parameter, found)
            assert torch.equal(found, expected), name


def test_float32_adapters_train_in_float16(make_trainer):
    """Without it TRL's bfloat16 adapters crash at the first step."""
    settings = {"use_cpu": False, "fp16": True, "bf16": False, "optim": "adamw_8bit"}
    settings["max_steps"] = 12  # the loss scaling skips the first ones
    with pytest.raises((RuntimeError, NotImplementedError), match="BFloat16"):
        make_trainer("qlora", **settings).train()
    trainer = make_trainer("qlora", **settings)
    training.float32_adapters(trainer)
    trainer.train()
    assert trainer.state.global_step == 12


@pytest.mark.parametrize("fast", [False, True])
def test_training_with_a_loss_scale_that_is_too_large(make_trainer, fast):
    settings = {"use_cpu": False, "optim": "adamw_8bit", "max_steps": 60}
    trainer = make_trainer("qlora", **settings)
    training.float32_adapters(trainer)
    training.use_fast_path(
        trainer, memory.Plan(512, 1, 0, False, fast, memory.Memory())
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30)
    trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert trainer.accelerator.scaler.get_scale() < 2.0**24
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_resumed_training_equals_the_uninterrupted_one(make_trainer, checkpoint):
    """With a loss scale and an 8-bit optimizer, which are in the checkpoint."""
    settings = {"use_cpu": False, "optim": "adamw_8bit", "learning_rate": 2e-4}
    settings["max_steps"] = 24
    plan = memory.Plan(512, 1, 0, False, True, memory.Memory())

    def train(seed=0, stop=24, checkpoint_folder=None):
        trainer = make_trainer("qlora", checkpoint, **settings, seed=seed)
        training.float32_adapters(trainer)
        training.use_fast_path(trainer, plan)
        trainer.add_callback(StopAt(stop))
        trainer.train(resume_from_checkpoint=checkpoint_folder)
        named = trainer.model.named_parameters()
        found = [p.detach().float().flatten() for _, p in named if p.requires_grad]
        return trainer, torch.cat(found)

    (whole, expected), (_, again), (_, other) = train(), train(), train(seed=1)
    short, _ = train(stop=12)
    resumed, found = train(checkpoint_folder=f"{short.args.output_dir}/checkpoint-12")
    seed = (other - expected).norm()
    noise, found = (again - expected).norm() / seed, (found - expected).norm() / seed
    print(f"repeated {noise:.3g}, resumed {found:.3g} of the distance of another seed")
    scales = [one.accelerator.scaler.get_scale() for one in (whole, resumed)]
    assert scales[0] == scales[1]
    assert found < 0.1


class Squeeze(TrainerCallback):
    """Limits the GPU memory in the middle of the second update."""

    def __init__(self, limit: float) -> None:
        self.share = limit / torch.cuda.mem_get_info()[1]

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            torch.cuda.empty_cache()  # else the limit would not apply to the cache
            torch.cuda.set_per_process_memory_fraction(self.share)


@pytest.fixture
def train_long(make_trainer, checkpoint):
    """Train in updates of two rows with 8,192 tokens; return the logs and the peak."""
    rows = [{"messages": data.to_messages(row)} for row in demo.questions()[:920]]
    settings = {"use_cpu": False, "optim": "adamw_8bit", "max_steps": 3}
    settings |= {"packing": True, "max_length": 8192, "learning_rate": 1e-4}
    settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}

    def train(recompute: int, prepare=lambda trainer: None) -> tuple[list, list, float]:
        memory.release()
        trainer = make_trainer("qlora", base=checkpoint, rows=rows, **settings)
        training.float32_adapters(trainer)
        plan = memory.Plan(8192, 2, recompute, 0, True, memory.Memory())
        training.use_fast_path(trainer, plan)
        trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=SCALE)
        prepare(trainer)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        losses, norms = ([e[key] for e in log] for key in ("loss", "grad_norm"))
        return losses, norms, torch.cuda.max_memory_allocated()

    yield train
    torch.cuda.set_per_process_memory_fraction(1.0)
    memory.release()


def test_training_step_that_runs_out_of_memory_begins_again(train_long, capsys):
    """The limit is just below the peak of the first plan.

    The second one needs 0.6 GiB less, and torch may hold 0.4 GiB without using them.
    """
    *_, much = train_long(0)
    losses, norms, _ = train_long(2)
    limit = much - 2**26
    capsys.readouterr()
    found = train_long(0, lambda trainer: trainer.add_callback(Squeeze(limit)))
    line = next(x for x in capsys.readouterr().out.splitlines() if " ran out " in x)
    assert line.startswith("GPU memory ran out in step 2: "), line
    assert f" of {limit / memory.GIB:.2f} GiB were used, and " in line, line
    assert "The step begins again with gradient checkpointing for all 2 l" in line
    assert found[0] == pytest.approx(losses, rel=1e-3)
    assert found[1] == pytest.approx(norms, rel=2e-2)
    assert found[2] < limit


def test_training_step_begins_again_with_inputs_in_ram(train_long, capsys):
    losses, norms, _ = train_long(2)
    found = train_long(2, lambda trainer: InBackward(trainer, 4))
    assert "and with their inputs in RAM" in capsys.readouterr().out
    assert found[0] == pytest.approx(losses, rel=1e-3)
    assert found[1] == pytest.approx(norms, rel=2e-2)


def test_load_model_nf4_peak(checkpoint):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = models.load_model(checkpoint, models.quantization_config())
    held = torch.cuda.memory_allocated() - before
    assert torch.cuda.max_memory_allocated() - before < held + 0.6 * memory.GIB
    del model


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_static_decoder_recorded_step(checkpoint, rows):
    model = load_nf4(checkpoint, torch.float16).eval()
    decoder = StaticDecoder(model, rows, 640)
    draw = torch.Generator().manual_seed(0)
    lengths = [600, 17, 250, 3, 64, 65, 128, 5][:rows]
    lines = [
        torch.randint(3, 32000, (n + 8,), generator=draw).tolist() for n in lengths
    ]
    for _ in range(2):  # the second time with a step that was recorded before
        prompts = [line[:n] for line, n in zip(lines, lengths, strict=True)]
        found = [decoder.start(prompts)]
        for i in range(8):
            tokens = [line[n + i] for line, n in zip(lines, lengths, strict=True)]
            found.append(decoder.step(torch.tensor(tokens).cuda()).clone())
        found = torch.stack(found, 1)
        for line, n, scores in zip(lines, lengths, found, strict=True):
            with torch.inference_mode():
                out = model(input_ids=torch.tensor([line]).cuda()).logits[0, n - 1 :]
            error = (scores - out.float()).norm() / out.float().norm()
            assert error < 1e-2, (n, error)
    assert decoder.recorded


def test_static_decoder_recorded_rows_leave_and_join(checkpoint):
    model = load_nf4(checkpoint, torch.float16).eval()
    decoder = StaticDecoder(model, 4, 64)
    assert_rows_leave_and_join(model, decoder, rel=1e-2)
    assert decoder.recorded


def test_static_decoder_recorded_read_of_several_tokens(checkpoint):
    model = load_nf4(checkpoint, torch.float16).eval()
    decoder = StaticDecoder(model, 1, 64)
    assert_reads_several_tokens(model, decoder, rel=1e-2)
    assert len(decoder.recorded) == 2


def test_stream_equals_generate(tokenizer):
    model = models.load_model("demo", models.quantization_config())
    prompts = ["What is the capital of France?", "Why?", "Name the currency of Japan."]
    chats = Conversations(tokenizer)
    for prompt in prompts:
        ids = prompt_tokens(chats, generation.as_messages(prompt), 40, 1024)
        out = model.generate(
            input_ids=torch.tensor([ids]).cuda(), max_new_tokens=40, pad_token_id=0
        )
        text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()
        assert "".join(generation.stream(model, tokenizer, prompt, 40)) == text


@pytest.mark.parametrize("name", CONFIGS)
def test_families_on_the_kernels(name):
    """Gradients are PEFT's, and a recorded step gives the tokens of `generate`."""
    model = small_model(name, torch.float32).cuda()
    adapted = with_lora(model, target_modules="all-linear")
    batch = on_gpu(packed(padded([40, 17, 64])))
    loss, expected = gradients(adapted, batch)
    assert patch.apply(adapted, recompute=1)
    found_loss, found = gradients(adapted, batch)
    assert found_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for key, grad in expected.items():
        assert (found[key] - grad).norm() < 1e-4 * grad.norm(), key
    patch.remove(adapted)
    adapted.eval()
    prompt = torch.arange(5, 25, device="cuda")[None]
    wanted = adapted.generate(
        input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    decoder = StaticDecoder(adapted, 1, 64)
    scores, tokens = decoder.start(prompt.tolist()), []
    for _ in range(12):
        tokens.append(scores.argmax(-1))
        scores = decoder.step(tokens[-1])
    assert decoder.recorded
    assert torch.cat(tokens).tolist() == wanted[0, 20:].tolist()
