"""Secrets in executed notebooks, in every form that a notebook or a page can hold."""

from __future__ import annotations

import base64
import html
import json
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output, writes

from tools import scrubbing

SECRET = "sk-Ab1/=+&<'é\"\\\\9"
FORMS = {
    "plain": SECRET,
    "address": urllib.parse.quote(SECRET, safe=""),
    "path of an address": urllib.parse.quote(SECRET),
    "form": urllib.parse.urlencode({"key": SECRET}),
    "JSON": json.dumps({"key": SECRET}),
    "JSON with letters": json.dumps({"key": SECRET}, ensure_ascii=False),
    "JSON in JSON": json.dumps(json.dumps({"key": SECRET})),
    "HTML": html.escape(SECRET),
    "HTML without quotes": html.escape(SECRET, quote=False),
    "JSON in HTML": html.escape(json.dumps(SECRET)),
    "repr": repr({"key": SECRET}),
    "repr in JSON": json.dumps(repr(SECRET)),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "header": base64.b64encode(f"user:{SECRET}".encode()).decode(),
    "address in base64": base64.urlsafe_b64encode(f"ab{SECRET}cd".encode()).decode(),
}


@pytest.fixture
def alone(monkeypatch, tmp_path) -> Path:
    """An environment without secrets, and an empty working directory."""
    for name in list(scrubbing.os.environ):
        if scrubbing.NAMES.search(name):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", tmp_path / "login")
    monkeypatch.setattr(scrubbing.runtime, "project_root", lambda: None)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_removed(alone, monkeypatch, form):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    found = scrubbing.remove(f"before {FORMS[form]} after")
    assert found.startswith("before ") and found.endswith(" after") and "***" in found
    # Of base64, the first and the last letters also depend on what is next to it.
    left = found.removeprefix("before ").removesuffix(" after").replace("***", "")
    assert len(left) <= 20 and "Ab1" not in left


@given(st.text(min_size=8, max_size=40), st.text(max_size=5), st.text(max_size=5))
def test_any_secret_is_removed_from_json_and_base64(secret, before, after):
    text = f"{before}{secret}{after}"
    forms = scrubbing.forms(secret)
    assert any(one in json.dumps(text) for one in forms)
    assert any(one in json.dumps(json.dumps(text)) for one in forms)
    assert any(one in base64.b64encode(text.encode()).decode() for one in forms)


@pytest.mark.parametrize("place", ["environment", ".env", "login"])
def test_secrets_of_every_place_are_known(alone, monkeypatch, place):
    if place == "environment":
        monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    elif place == ".env":
        (alone / ".env").write_text(f"OTHER=12345678x\nMY_SECRET='{SECRET[:8]}'\n")
    else:
        (alone / "login").write_text(f"{SECRET}\n")
    assert scrubbing.known() == [SECRET[:8] if place == ".env" else SECRET]


@pytest.mark.parametrize("value", ["demo", "markdown", "cell_type", "12345678", ""])
def test_usual_words_and_numbers_are_no_secrets(alone, monkeypatch, value):
    monkeypatch.setenv("HF_TOKEN", value)
    text = '{"cell_type": "markdown", "count": 12345678, "world": "demo"}'
    assert scrubbing.remove(text) == text


def test_a_token_of_small_letters_is_removed(alone, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "onlysmallletters")
    assert scrubbing.remove("[onlysmallletters]") == "[***]"


def test_longer_secret_goes_before_one_that_is_a_part_of_it(alone, monkeypatch):
    monkeypatch.setenv("A_KEY", "abc-123-xyz")
    monkeypatch.setenv("B_KEY", "abc-123-xyz-and-more")
    assert scrubbing.remove("[abc-123-xyz-and-more]") == "[***]"


def test_what_looks_like_a_token_of_the_hub_is_removed(alone):
    assert scrubbing.remove("hf_" + "x" * 34) == "hf_***"


def notebook(*texts: str) -> str:
    outputs = [new_output("stream", name="stdout", text=text) for text in texts]
    outputs.append(new_output("stream", name="stderr", text="end"))
    cell = new_code_cell("print()", id="a", outputs=outputs)
    return writes(new_notebook(cells=[cell]))


def test_clean_writes_a_file_whole(alone, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    clean, path = scrubbing.Clean(), alone / "a.ipynb"
    clean.write(notebook("one\ntwo"), str(path))
    assert not clean.found and path.read_text() == notebook("one\ntwo")
    clean.write(notebook(SECRET[:3], SECRET[3:], "\nx"), str(path))
    assert clean.found and path.read_text() == notebook("***\nx")
    assert [one.name for one in alone.iterdir()] == ["a.ipynb"]
