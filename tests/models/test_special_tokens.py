from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import FAMILIES, make_tokenizer
from transformers import GenerationConfig

from colab_utils import data, models
from colab_utils.data.tokens.rendering import probe
from colab_utils.models import special_tokens

AUTHORS = None  # the authors' own pad token stays
# The pad token of each family, and the printed reason.
PADS = {
    "llama2": ("<unk>", "the tokenizer has none"),
    "llama3": ("<|finetune_right_pad_id|>", "the tokenizer has none"),
    "llama3_base": ("<|finetune_right_pad_id|>", "the tokenizer has none"),
    "llama3_0": ("<|reserved_special_token_0|>", "the tokenizer has none"),
    "smollm2": ("<|endoftext|>", "<|im_end|> is the EOS token"),
    "smollm2_base": ("<empty_output>", "<|endoftext|> is the EOS token"),
    "qwen2": ("<|endoftext|>", AUTHORS),
    "qwen2_base": ("<|vision_pad|>", "<|endoftext|> is the EOS token"),
    "qwen3": ("<|endoftext|>", AUTHORS),
    "phi3": ("<|placeholder1|>", "<|endoftext|> is the EOS token"),
    "mistral_v3": ("<unk>", "the tokenizer has none"),
    "tekken": ("<pad>", "the tokenizer has none"),
    "gemma": ("<pad>", AUTHORS),
}


def saved(tokenizer, folder, **changes) -> str:
    """Save a tokenizer, with changes of tokenizer_config.json, and return its name."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_load_tokenizer_pads_with_a_token_that_is_never_trained(kind, tmp_path, capsys):
    name = saved(make_tokenizer(kind), tmp_path)
    tokenizer = models.load_tokenizer(name)
    expected, reason = PADS[kind]
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id not in (
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
    )
    assert tokenizer.padding_side == "right"
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if line.startswith("pad token")]
    line = f"pad token: {expected}, because {reason}"
    assert printed == ([line] if reason else [])
    tokenizer.save_pretrained(tmp_path)  # as with an adapter: the choice is kept
    assert models.load_tokenizer(name).pad_token == expected
    assert "pad token" not in capsys.readouterr().out


def test_load_tokenizer_replaces_a_pad_token_without_an_embedding(tmp_path, capsys):
    """Copies of Llama 2 have 32,000 embeddings and a <pad> with the id 32000."""
    tokenizer = make_tokenizer("llama2")
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    name = saved(tokenizer, tmp_path)
    assert models.load_tokenizer(name).pad_token == "<pad>"
    capsys.readouterr()
    for config in ({"vocab_size": size}, {"text_config": {"vocab_size": size}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert models.load_tokenizer(name).pad_token == "<unk>"
        assert capsys.readouterr().out.endswith(
            f"pad token: <unk>, because <pad> has no embedding: its id is {size}, and "
            f"the model has {size} embeddings\n"
        )


def test_load_tokenizer_replaces_a_pad_token_that_the_template_writes(tmp_path, capsys):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    tokenizer = make_tokenizer("smollm2_base")
    name = saved(tokenizer, tmp_path, pad_token="<|im_end|>", chat_template=template)
    assert models.load_tokenizer(name).pad_token == "<empty_output>"
    assert "because the chat template writes <|im_end|>" in capsys.readouterr().out


def test_load_tokenizer_does_not_pad_with_a_stop_token(tmp_path):
    tokenizer = make_tokenizer("llama3_0")
    name = saved(tokenizer, tmp_path)
    first = tokenizer.convert_tokens_to_ids("<|reserved_special_token_0|>")
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id, first]).save_pretrained(name)
    assert models.load_tokenizer(name).pad_token == "<|reserved_special_token_1|>"


@pytest.fixture
def only_eos(tmp_path):
    """A tokenizer whose one special token is EOS, as GPT-2's is."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(make_tokenizer("smollm2_base").backend_tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:1]
    backend = Tokenizer.from_str(json.dumps(state))
    end = "<|endoftext|>"
    names = {"bos_token": end, "eos_token": end, "unk_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_load_tokenizer_pads_with_eos_if_there_is_no_other(only_eos, tmp_path, capsys):
    """TRL's collator masks what it pads, and no EOS token of an answer."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = models.load_tokenizer(saved(only_eos, tmp_path))
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    assert "the attention mask shows what is padding" in capsys.readouterr().out
    rows = [
        {"input_ids": [40, 41, 42, end], "assistant_masks": [0, 1, 1, 1]},
        {"input_ids": [43, end], "assistant_masks": [0, 1]},
    ]
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(rows)
    assert batch["labels"].tolist() == [[-100, 41, 42, end], [-100, end, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_load_tokenizer_without_special_tokens(only_eos, tmp_path):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(only_eos.backend_tokenizer.to_str()) | {"added_tokens": []}
    backend = Tokenizer.from_str(json.dumps(state))
    name = saved(PreTrainedTokenizerFast(tokenizer_object=backend), tmp_path)
    with pytest.raises(ValueError, match=r"has no EOS token.* Set MODEL"):
        models.load_tokenizer(name)


CHATS = [
    ("llama3", "llama3"),
    ("smollm2", "chatml"),
    ("smollm2_base", "chatml"),
    ("qwen2", "qwen25"),
    ("qwen2_base", "qwen25"),
    ("phi3", "phi3"),
    ("tekken", "mistral_v3"),
    ("gemma", "gemma3"),
]


@pytest.mark.parametrize(("kind", "template"), CHATS)
def test_load_tokenizer_trains_on_no_pad_token(kind, template, tmp_path):
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer = models.load_tokenizer(saved(tokenizer, tmp_path))
    roles = ("system", "user", "assistant", "user", "assistant")
    tokens = data.trained_tokens(probe(*roles), tokenizer)
    assert any(tokens["assistant_masks"])
    assert tokenizer.pad_token_id not in tokens["input_ids"]
    assert data.end_of_turn(tokenizer) != [tokenizer.pad_token_id]


def model_with(eos) -> SimpleNamespace:
    return SimpleNamespace(generation_config=GenerationConfig(eos_token_id=eos))


def test_stop_tokens():
    tokenizer = make_tokenizer("llama3")
    tokenizer.eos_token = "<|end_of_text|>"
    tokenizer.chat_template = TEMPLATES["llama3"]
    ids = tokenizer.convert_tokens_to_ids(["<|eom_id|>", "<|python_tag|>"])
    end = tokenizer.eos_token_id
    turn = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    for eos in (None, end):
        assert models.stop_tokens(model_with(eos), tokenizer) == [end, turn]
    assert models.stop_tokens(model_with([*ids, end]), tokenizer) == [end, *ids, turn]
    assert models.stop_tokens(model_with(ids[0]), tokenizer) == [end, ids[0], turn]


def test_add_tokens_keeps_the_model(capsys):
    tokenizer, model = models.load_tokenizer("demo"), models.load_model("demo")
    ids = torch.tensor([tokenizer("The capital of France")["input_ids"]])
    before = model(ids).logits
    assert models.add_tokens(model, tokenizer, ["<a>", "</s>", "<b>"]) == [
        1024,
        2,
        1025,
    ]
    after = model(ids).logits
    assert torch.equal(after[..., :1024], before)
    assert after.argmax(-1).max() < 1024 and model.config.vocab_size == 1026
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = table.weight[:1024].double().mean(0).to(table.weight.dtype)
        assert torch.equal(table.weight[1024:], mean.expand(2, -1))
    assert tokenizer("x<b>y", add_special_tokens=False)["input_ids"].count(1025) == 1
    assert "1,024 embeddings before, 1,026 now" in capsys.readouterr().out
    models.add_tokens(model, tokenizer, ["<a>"])
    assert model.config.vocab_size == 1026  # it has the token already


def test_set_padding_never_takes_a_mark():
    tokenizer = models.load_tokenizer("demo")
    tokenizer.unk_token = None
    tokenizer.add_tokens(
        ["<fim_prefix>", "<other>", "<fim_middle>"], special_tokens=True
    )
    tokenizer.pad_token = None
    special_tokens.set_padding(tokenizer, 1027, [2])
    assert tokenizer.pad_token in ("<other>", "<unk>")
