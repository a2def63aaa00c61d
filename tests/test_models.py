from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from colab_utils import memory, models
from colab_utils.data.chat_template import CHAT_TEMPLATE

QUIET = settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Any text but: half characters, the sign that stands for a space in the vocabulary, and
# the special tokens' own names.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<>"))


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation from what user and assistant say in turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * (system is not None) + said


def ids(tokenizer, messages, **options) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)[
        "input_ids"
    ]


# The format of Llama 2's own code (llama/generation.py, chat_completion), written out.
CHATS = {
    "single": (turns("Hi?", "Hello."), "<s>[INST] Hi? [/INST] Hello. </s>"),
    "system": (
        turns("Hi?", "Ahoy.", system="Speak like a pirate."),
        "<s>[INST] <<SYS>>\nSpeak like a pirate.\n<</SYS>>\n\nHi? [/INST] Ahoy. </s>",
    ),
    "several": (
        turns("Hi?", "Ahoy.", "And?", "Arr.", system="Be brief."),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Ahoy. </s>"
        "<s>[INST] And? [/INST] Arr. </s>",
    ),
    "spaces": (turns("  Hi?\n", "\tHello.  "), "<s>[INST] Hi? [/INST] Hello. </s>"),
    "open": (turns("Hi?"), "<s>[INST] Hi? [/INST]"),
}


@pytest.mark.parametrize("name", CHATS)
def test_the_template_writes_llama_2s_own_format(tokenizer, name):
    messages, expected = CHATS[name]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "user"],
        ["user", "assistant", "assistant"],
        ["user", "system"],
        ["system", "assistant"],
        ["user", "tool"],
    ],
)
def test_the_template_refuses_roles_out_of_order(tokenizer, roles):
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(TemplateError, match="roles must alternate"):
        tokenizer.apply_chat_template(messages, tokenize=False)


@QUIET
@given(texts=st.lists(TEXT, min_size=1, max_size=3), system=st.none() | TEXT)
def test_exactly_the_answers_are_trained_on(tokenizer, texts, system):
    said = [text for answer in texts for text in ("Why?", answer)]
    out = tokenizer.apply_chat_template(
        turns(*said, system=system),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    spans, inside = [], False
    for token, trained in zip(out["input_ids"], out["assistant_masks"], strict=True):
        if trained and not inside:
            spans.append([])
        if trained:
            spans[-1].append(token)
        inside = bool(trained)
    assert len(spans) == len(texts)
    for span, text in zip(spans, texts, strict=True):
        assert span[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(span[:-1]).strip() == text.strip()
    assert out["input_ids"].count(tokenizer.bos_token_id) == len(texts)


@QUIET
@given(question=TEXT, answer=TEXT)
def test_what_is_asked_later_is_how_training_began(tokenizer, question, answer):
    prompt = ids(tokenizer, turns(question), add_generation_prompt=True)
    whole = ids(tokenizer, turns(question, answer))
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert whole[: len(prompt)] == prompt


def test_the_trainer_sees_one_bos_and_learns_to_stop(trained, tokenizer):
    trainer, _ = trained["qlora"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert len({len(row["input_ids"]) for row in trainer.train_dataset}) > 1
    for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert (row == tokenizer.bos_token_id).sum() == 1
        assert labels[labels != -100][-1] == tokenizer.eos_token_id
        assert (labels[row == tokenizer.pad_token_id] == -100).all()


def test_padding_is_unk_and_on_the_right(tokenizer):
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"


def changed_tokenizer(tokenizer, folder, **tokens):
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokens))
    return str(folder)


def test_eos_is_never_kept_as_padding(tokenizer, tmp_path):
    name = changed_tokenizer(tokenizer, tmp_path, pad_token="</s>")
    assert models.load_tokenizer(name).pad_token == "<unk>"


def test_a_pad_token_without_an_embedding_is_no_padding(tokenizer, tmp_path, capsys):
    """As <pad>, 32000, in copies of Llama 2, which has 32,000 embeddings."""
    shutil.copytree(models.location("demo"), tmp_path, dirs_exist_ok=True)
    wide = copy.deepcopy(tokenizer)
    wide.add_special_tokens({"pad_token": "<pad>"})
    wide.save_pretrained(tmp_path)
    assert models.load_tokenizer(str(tmp_path)).pad_token == "<unk>"
    said = "<pad> is no padding: its id is 1024, and the model has 1,024 embeddings\n"
    assert capsys.readouterr().out == said
    (tmp_path / "config.json").unlink()
    assert models.load_tokenizer(str(tmp_path)).pad_token == "<pad>"


def test_a_tokenizer_without_unk_says_what_to_do(tokenizer, tmp_path):
    name = changed_tokenizer(tokenizer, tmp_path, pad_token=None, unk_token=None)
    with pytest.raises(ValueError, match=r"Set tokenizer\.pad_token"):
        models.load_tokenizer(name)


def test_a_template_that_the_tokenizer_brings_stays(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    loaded = models.load_tokenizer(str(tmp_path))
    assert loaded.apply_chat_template(turns("Hi"), tokenize=False) == "Hi"


def lora_gradients(model, tokenizer, rows) -> dict[str, torch.Tensor]:
    """Gradients of every LoRA parameter for one batch."""
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
    """A 4-bit model with a LoRA whose B is not zero, so that every gradient counts."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = models.load_model("demo", models.quantization_config())
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


def test_generating_does_not_change_the_gradients(adapted, tokenizer, demo_rows):
    # On CPUs with AVX512-BF16 bitsandbytes would repack the weights while it generates.
    before = lora_gradients(adapted, tokenizer, demo_rows)
    prompt = ids(tokenizer, turns("Why?"), return_tensors="pt")
    adapted.eval().generate(prompt, max_new_tokens=4, pad_token_id=0)
    after = lora_gradients(adapted, tokenizer, demo_rows)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient)


def test_4_bit_gradients_are_those_of_the_dequantised_weights(
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
            plain = torch.nn.Linear(*reversed(weight.shape), bias=False)
            plain.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            module.base_layer = plain
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in adapted.modules())
    reference = lora_gradients(adapted, tokenizer, demo_rows)
    assert len(found) == 2 * 7 * 6
    for name, gradient in reference.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("method", memory.METHODS)
def test_a_saved_model_computes_the_same_when_loaded(trained, tokenizer, method):
    trainer, folder = trained[method]
    prompt = ids(tokenizer, turns("Why?"), return_tensors="pt")
    loaded, its_tokenizer = models.load_adapter(folder)
    with torch.inference_mode():
        expected = trainer.model.eval()(prompt).logits
        found = loaded(prompt).logits
    # Loaded again in 32 bits from the same 16-bit base; full weights are saved whole.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not loaded.training
    assert its_tokenizer.chat_template == CHAT_TEMPLATE
    assert its_tokenizer.pad_token == "<unk>"


def test_training_moved_each_saved_model(trained, tokenizer, model):
    # Without this the test above would also pass for a model that ignores its adapter.
    prompt = ids(tokenizer, turns("Why?"), return_tensors="pt")
    with torch.inference_mode():
        base = model(prompt).logits
        for method in memory.METHODS:
            _, folder = trained[method]
            moved = models.load_adapter(folder)[0](prompt).logits
            assert (moved - base).abs().max() > 0.1


def test_a_loaded_adapter_takes_no_more_room_than_its_base(trained, monkeypatch):
    monkeypatch.setattr(models, "torch_dtype", lambda: torch.bfloat16)
    model, _ = models.load_adapter(trained["qlora"][1])
    dtypes = {p.dtype for n, p in model.named_parameters() if "lora_" in n}
    assert dtypes == {torch.bfloat16}


def test_only_qlora_is_loaded_in_4_bits(trained):
    import bitsandbytes as bnb

    def quantised(method: str) -> bool:
        model, _ = models.load_adapter(trained[method][1])
        return any(isinstance(m, bnb.nn.Linear4bit) for m in model.modules())

    assert {method: quantised(method) for method in memory.METHODS} == {
        "qlora": True,
        "lora": False,
        "full": False,
    }


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.load_model("no/such/folder")
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.load_tokenizer("no/such/folder")
    with pytest.raises(FileNotFoundError, match=r"'no/such/folder' is neither"):
        models.folder("no/such/folder")


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_downloaded_of_a_model(monkeypatch, tmp_path, stored):
    """A folder plays the Hub: what counts is which files are asked for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    texts = {"config.json", "tokenizer.model", "tokenizer_config.json", "merges.txt"}
    texts |= {"chat_template.jinja", "LICENSE.txt", "USE_POLICY.md"}
    other = {"notes.md", "pytorch_model.bin", "model.safetensors"} - {stored}

    def download(name: str, allow_patterns: list[str], token: str | None) -> str:
        there = texts | other | {stored}
        if stored == "pytorch_model.bin":
            there -= {"model.safetensors"}
        for file in filter_repo_objects(there, allow_patterns=allow_patterns):
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(models.hub, "token", lambda: None)
    if stored == "model.safetensors":
        assert models.folder("someone/model") == tmp_path
    else:
        with pytest.raises(
            FileNotFoundError, match=r"folder\('someone/model', '\*.bin"
        ):
            models.folder("someone/model")
        assert models.folder("someone/model", "*.bin") == tmp_path
    assert {file.name for file in tmp_path.iterdir()} == texts | {stored}


def test_a_folder_without_weights_is_named(tmp_path):
    config = (models.demo.MODEL / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(OSError, match=str(tmp_path)):
        models.load_model(str(tmp_path))


def test_a_local_model_asks_for_no_token(monkeypatch):
    def asked() -> str:
        raise AssertionError("a token was looked for")

    monkeypatch.setattr(models.hub, "token", asked)
    models.load_tokenizer("demo")


def test_sampling_settings_of_the_repository_are_dropped(tmp_path, tokenizer):
    from transformers import GenerationConfig

    models.load_model("demo").save_pretrained(tmp_path)
    # As in Llama 2's repository.
    GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, max_length=4096, eos_token_id=2
    ).save_pretrained(tmp_path)
    kept = models.load_model(str(tmp_path)).generation_config
    assert not kept.do_sample
    assert (kept.temperature, kept.top_p, kept.max_length) == (None, None, None)
    assert kept.eos_token_id == 2


def test_the_demo_model_is_what_auto_means_without_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert models.choose("auto") == "demo"
    assert "no GPU" in capsys.readouterr().out
    assert models.choose("me/mine") == "me/mine"


def test_parameters_are_counted_as_the_weights_they_hold(model, adapted):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models.location("demo"))
    plain = AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in plain.parameters())
    assert models.count_parameters(plain) == (total, total)
    # transformers freezes what it quantises, and leaves norms and embeddings alone.
    assert models.count_parameters(model)[1] == total
    lora = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert models.count_parameters(adapted) == (lora, total + lora)


def test_a_repository_that_is_quantised_is_taken_as_it_is(model, tmp_path, capsys):
    from transformers import BitsAndBytesConfig

    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    for quantization in (None, models.quantization_config(), other):
        again = models.load_model(str(tmp_path), quantization)
        assert "is quantised already: taken as it is" in capsys.readouterr().out
        found = dict(again.named_parameters())
        for name, weight in model.named_parameters():
            assert torch.equal(found[name], weight), name
        linear = again.model.layers[0].mlp.up_proj
        assert linear.compute_dtype == models.torch_dtype()
        x = torch.randn(2, linear.in_features)
        expected = model.model.layers[0].mlp.up_proj(x)
        torch.testing.assert_close(linear(x), expected)


def test_the_config_is_that_of_the_model(model, tmp_path):
    assert models.load_config("demo").hidden_size == model.config.hidden_size
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        models.load_config(str(tmp_path))
