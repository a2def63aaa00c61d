"""Texts with marks of fill-in-the-middle become rows with a middle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.shapes import middle_marks

PARTS = {"prefix": "def f(x):\n    ", "middle": "return x", "suffix": "\n\nprint(f(1))"}
FORMATS = {
    "starcoder": "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>{middle}",
    "santacoder": "<fim-prefix>{prefix}<fim-suffix>{suffix}<fim-middle>{middle}",
    "suffix first": "<fim_suffix>{suffix}<fim_prefix>{prefix}<fim_middle>{middle}",
    "qwen": "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>{middle}"
    "<|endoftext|>",
    "codellama": "<s><PRE> {prefix} <SUF>{suffix} <MID>{middle} <EOT>",
    "deepseek": "<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>{middle}",
}
CODE = st.text(st.sampled_from("ab \n(<>|_fim"), min_size=1).filter(
    lambda text: not middle_marks.MARK.search(text)
)


@pytest.mark.parametrize("name", FORMATS)
def test_marks_are_cut(name):
    text = FORMATS[name].format(**PARTS)
    assert data.to_row({"content": text, "path": "a.py"}, 4) == PARTS | {"line": 4}
    assert data.to_row({"text": text}, 4, "completion")["text"] == text


def test_a_pair_whose_prompt_ends_in_the_mark_of_the_middle(tmp_path, capsys):
    whole = FORMATS["starcoder"].format(**{**PARTS, "middle": ""})
    raw = {"prompt": whole, "completion": PARTS["middle"] + "<|endoftext|>"}
    assert data.to_row(raw, 4) == PARTS | {"line": 4}
    data.write_jsonl(tmp_path / "a.jsonl", [raw])
    data.load(str(tmp_path / "a.jsonl"))
    assert capsys.readouterr().out == (
        "kind: fill-in-the-middle, by its columns prompt and completion, cut at its "
        "marks of fill-in-the-middle\n"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<fim_prefix>a<fim_suffix>b", "middle last"),
        ("<fim_prefix>a<fim_middle>b<fim_suffix>c", "middle last"),
        ("<fim_prefix>a<fim_prefix>b<fim_suffix>c<fim_middle>d", "middle last"),
        ("<PRE> a <SUF> b <MID> ", "middle is empty"),
        ("<fim_prefix><fim_suffix><fim_middle>a", "prefix and suffix are empty"),
    ],
)
def test_marks_in_disorder_are_refused(text, reason):
    with pytest.raises(data.BadRow, match=reason):
        data.to_row({"text": text}, 1)


def test_a_text_about_the_marks_stays_as_it_is():
    text = "StarCoder reads <fim_prefix>a<fim_suffix>b<fim_middle>c."
    assert data.to_row({"text": text}, 1)["text"] == text


@given(st.sampled_from(["starcoder", "suffix first", "deepseek"]), CODE, CODE, CODE)
def test_any_parts_come_back(name, prefix, middle, suffix):
    parts = {"prefix": prefix, "middle": middle, "suffix": suffix}
    assert middle_marks.cut(FORMATS[name].format(**parts)) == parts


def test_a_reader_who_asks_for_middles_gets_those_of_any_text():
    text = "### Human: Who are you?\n### Assistant: I am the miller of the mill."
    row = data.to_row({"text": text}, 1, "fill-in-the-middle")
    assert row["prefix"] + row["middle"] + row["suffix"] == text
    marked = FORMATS["starcoder"].format(**PARTS)
    assert data.to_row({"text": marked}, 4, "fill-in-the-middle") == PARTS | {"line": 4}
