from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from colab_utils import memory, models, recipe, runtime, weights
from colab_utils.data.tokens.chat_template import CHAT_TEMPLATE
from colab_utils.models import loading


def prompt_ids(tokenizer) -> torch.Tensor:
    """Return the token ids (1, length) of a conversation with one user turn."""
    messages = [{"role": "user", "content": "Why?"}]
    return tokenizer.apply_chat_template(
        messages, return_dict=True, return_tensors="pt"
    )["input_ids"]


def test_load_tokenizer_keeps_its_own_chat_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    own = (
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    (tmp_path / "chat_template.jinja").write_text(own)
    loaded = models.load_tokenizer(str(tmp_path))
    assert loaded.chat_template == own
    course = models.load_tokenizer(str(tmp_path), template="course")
    assert course.chat_template == CHAT_TEMPLATE


def lora_gradients(model, tokenizer, rows) -> dict[str, torch.Tensor]:
    """Return the gradient of every LoRA parameter for one batch."""
    batch = tokenizer.apply_chat_template(
        [row["messages"] for row in rows[:4]],
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    model.train()
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def adapted():
    """A 4-bit model with a LoRA whose B is not zero, so that no gradient is zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = models.load_model("demo", models.quantization_config())
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.slow
def test_load_model_gradients_after_generating(adapted, tokenizer, demo_rows):
    # On CPUs with AVX512-BF16 bitsandbytes would repack the weights while it generates.
    before = lora_gradients(adapted, tokenizer, demo_rows)
    prompt = prompt_ids(tokenizer)
    adapted.eval().generate(prompt, max_new_tokens=4, pad_token_id=0)
    after = lora_gradients(adapted, tokenizer, demo_rows)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient)


def test_load_model_gradients_equal_those_of_dequantized_weights(
    adapted, tokenizer, demo_rows
):
    import bitsandbytes as bnb

    found = lora_gradients(adapted, tokenizer, demo_rows)
    for module in list(adapted.modules()):
        base = getattr(module, "base_layer", None)
        if isinstance(base, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(
                base.weight.data, base.weight.quant_state
            )
            linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
            linear.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            module.base_layer = linear
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in adapted.modules())
    reference = lora_gradients(adapted, tokenizer, demo_rows)
    assert len(found) == 2 * 7 * 6
    for name, gradient in reference.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("method", memory.METHODS)
def test_load_adapter_equals_the_trained_model(trained, tokenizer, method):
    trainer, folder = trained[method]
    prompt = prompt_ids(tokenizer)
    loaded, its_tokenizer = models.load_adapter(str(folder))
    with torch.inference_mode():
        expected = trainer.model.eval()(prompt).logits
        found = loaded(prompt).logits
    # The base is read from the same float16 file; full fine-tuning saves all weights.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not loaded.training
    assert its_tokenizer.chat_template == CHAT_TEMPLATE
    assert its_tokenizer.pad_token == "<unk>"


@pytest.mark.slow
def test_load_adapter_differs_from_the_base(trained, tokenizer, model):
    """Without this, the test above would pass for a model that ignores its adapter."""
    prompt = prompt_ids(tokenizer)
    with torch.inference_mode():
        base = model(prompt).logits
        for method in memory.METHODS:
            _, folder = trained[method]
            moved = models.load_adapter(folder)[0](prompt).logits
            assert (moved - base).abs().max() > 0.1


@pytest.mark.slow
def test_load_adapter_in_the_dtype_of_the_base(trained, monkeypatch):
    monkeypatch.setattr(loading, "torch_dtype", lambda: torch.bfloat16)
    model, _ = models.load_adapter(trained["qlora"][1])
    dtypes = {p.dtype for n, p in model.named_parameters() if "lora_" in n}
    assert dtypes == {torch.bfloat16}


@pytest.mark.slow
def test_load_adapter_to_train_it_further(trained, monkeypatch):
    monkeypatch.setattr(loading, "torch_dtype", lambda: torch.bfloat16)
    trainer, folder = trained["qlora"]
    model, _ = models.load_adapter(folder, trainable=True)
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(found) == 84
    for name, weight in found.items():
        assert torch.equal(weight, expected[name])  # also in dtype: float32
    with pytest.raises(ValueError, match="is a whole model, not an adapter"):
        models.load_adapter(trained["full"][1], trainable=True)


@pytest.mark.slow
def test_load_adapter_refuses_a_base_that_the_gpu_cannot_hold(trained, monkeypatch):
    machine = dataclasses.replace(runtime.detect(), device="cuda", accelerator="T4")
    monkeypatch.setattr(runtime, "detect", lambda: machine)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**18, 2**20))
    with pytest.raises(MemoryError, match=r"weights of demo do not fit\. .*no GPU"):
        models.load_adapter(trained["qlora"][1])


def test_load_model_refuses_weights_that_do_not_fit_the_ram(monkeypatch):
    ram = SimpleNamespace(available=2**20, total=2**34)
    monkeypatch.setattr("psutil.virtual_memory", lambda: ram)
    message = r"RAM has 0\.0 GiB free and 0\.0 are needed: .* restart the session\."
    with pytest.raises(MemoryError, match=message):
        models.load_model("demo")


@pytest.mark.slow
def test_load_adapter_in_4_bits_only_for_qlora(trained):
    import bitsandbytes as bnb

    def is_4_bit(method: str) -> bool:
        model, _ = models.load_adapter(trained[method][1])
        return any(isinstance(m, bnb.nn.Linear4bit) for m in model.modules())

    assert {method: is_4_bit(method) for method in memory.METHODS} == {
        "qlora": True,
        "lora": False,
        "full": False,
    }


def test_load_model_resets_sampling_settings(tmp_path, tokenizer):
    from transformers import GenerationConfig

    models.load_model("demo").save_pretrained(tmp_path)
    # These are the settings of Llama 2's repository.
    GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, max_length=4096, eos_token_id=2
    ).save_pretrained(tmp_path)
    kept = models.load_model(str(tmp_path)).generation_config
    assert not kept.do_sample
    assert (kept.temperature, kept.top_p, kept.max_length) == (None, None, None)
    assert kept.eos_token_id == 2


def test_count_parameters_of_4_bit_weights(model, adapted):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.location("demo"))
    unquantized = AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in unquantized.parameters())
    assert models.count_parameters(unquantized) == (total, total)
    # transformers freezes the weights that it quantizes, not norms and embeddings.
    assert models.count_parameters(model)[1] == total
    lora = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert models.count_parameters(adapted) == (lora, total + lora)


def test_load_model_from_a_quantized_folder(model, tmp_path, capsys):
    from transformers import BitsAndBytesConfig

    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    for quantization in (None, models.quantization_config(), other):
        again = models.load_model(str(tmp_path), quantization)
        printed = capsys.readouterr().out
        assert "is already quantized: its own settings are used" in printed
        found = dict(again.named_parameters())
        for name, weight in model.named_parameters():
            assert torch.equal(found[name], weight), name
        linear = again.model.layers[0].mlp.up_proj
        assert linear.compute_dtype == models.torch_dtype()
        x = torch.randn(2, linear.in_features)
        expected = model.model.layers[0].mlp.up_proj(x)
        torch.testing.assert_close(linear(x), expected)


FOREIGN = (
    "from pathlib import Path\n\nPath({!r}).write_text('ran')\n\nclass Odd: pass\n"
)


@pytest.mark.parametrize("load", ["load_config", "load_tokenizer", "load_model"])
def test_load_runs_no_code_of_the_model(load, tokenizer, tmp_path, monkeypatch):
    """transformers asks "Do you wish to run the custom code?"; the answer is yes."""
    folder, trace = tmp_path / "odd-model", tmp_path / "trace"
    tokenizer.save_pretrained(folder)
    code = {"AutoConfig": "odd.Odd", "AutoModelForCausalLM": "odd.Odd"}
    config = {"model_type": "odd", "auto_map": code, "vocab_size": 1024}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "Odd"}
    settings["auto_map"] = {"AutoTokenizer": ["odd.Odd", None]}
    path.write_text(json.dumps(settings))
    (folder / "odd.py").write_text(FOREIGN.format(str(trace)))
    monkeypatch.setattr("builtins.input", lambda text="": "y")
    with pytest.raises(ValueError, match="odd-model can be loaded only with its own"):
        getattr(models, load)(str(folder))
    assert not trace.exists()


def test_load_adapter_runs_no_code_of_the_base(tmp_path, monkeypatch, tokenizer):
    base, trace = tmp_path / "odd-base", tmp_path / "trace"
    base.mkdir()
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "odd.py").write_text(FOREIGN.format(str(trace)))
    tokenizer.save_pretrained(tmp_path / "adapter")
    recipe.write(tmp_path / "adapter", method="lora", base_model=str(base))
    monkeypatch.setattr("builtins.input", lambda text="": "y")
    with pytest.raises(ValueError, match="odd-base can be loaded only with its own"):
        models.load_adapter(tmp_path / "adapter")
    assert not trace.exists()


def test_load_config_of_an_unknown_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "odd"}')
    with pytest.raises(ValueError, match="the model type odd, which the installed"):
        models.load_config(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("options", [{}, {"all": True}, {"prepared": True}], ids=str)
def test_load_adapter_with_added_tokens(tmp_path, method, options):
    """Also with the tables saved, and after PEFT's preparation for k-bit training."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    tokenizer = models.load_tokenizer("demo")
    quantization = models.quantization_config() if method == "qlora" else None
    model = models.load_model("demo", quantization)
    ids = models.add_tokens(model, tokenizer, ["<a>", "<b>"])
    if "prepared" in options:
        model = prepare_model_for_kbit_training(model)
    lora = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights=False,
        trainable_token_indices={"embed_tokens": ids},
    )
    torch.manual_seed(0)
    model = get_peft_model(model, lora).eval()
    for name, weight in model.named_parameters():
        if "trainable_tokens" in name:
            torch.nn.init.normal_(weight)
            assert weight.dtype == torch.float32
    model.save_pretrained(tmp_path, save_embedding_layers="all" in options)
    tokenizer.save_pretrained(tmp_path)
    recipe.write(tmp_path, method=method, base_model="demo")
    loaded, its_tokenizer = models.load_adapter(tmp_path)
    assert len(its_tokenizer) == 1026 == loaded.config.vocab_size
    prompt = torch.tensor([[1, 1024, 300, 400, 1025, 500]])
    with torch.inference_mode():
        expected = model(prompt).logits
        torch.testing.assert_close(
            loaded(prompt).logits, expected, rtol=1e-4, atol=1e-4
        )
        other = loaded(torch.tensor([[1, 1025, 300, 400, 1024, 500]])).logits
    assert (other - expected).abs().max() > 0.1  # the rows differ


@pytest.mark.slow
def test_gguf_answers_as_the_model_that_it_was_written_from(tokenizer, tmp_path):
    folder = tmp_path / "whole"
    model = models.load_model("demo")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    read = models.load_gguf(weights.write_gguf(folder, kind="q8_0"))
    ids = prompt_ids(tokenizer)
    with torch.no_grad():
        one, other = (m.eval()(ids).logits.float() for m in (model, read))
    assert (one - other).norm() < 0.02 * one.norm()
    assert not torch.equal(one, other)  # it was rounded to 8 bits
    with pytest.raises(FileNotFoundError, match="notebook 04"):
        models.load_gguf(str(tmp_path / "missing.gguf"))
