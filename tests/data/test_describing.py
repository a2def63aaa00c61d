"""The dataset card says what is in the files, and where they come from."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import yaml
from helpers.rows import row

from colab_utils import data
from colab_utils.data import describing
from colab_utils.data.schema import Rejected


def card_of(folder) -> tuple[dict, str]:
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
    return yaml.safe_load(header), text


def table(text: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line]
    return [cells for cells in lines if "---" not in "".join(cells)]


def test_card_shows_statistics(tmp_path):
    """Lengths by file in characters and tokens, and the most frequent reasons."""
    source = tmp_path / "raw.csv"
    source.write_text("question,answer\n")
    train = [row("ab", "c" * n) for n in (1, 2, 3, 4, 1000)]
    reasons = ["repeats line 7"] * 4 + ["nearly repeats line 1,234", "a | b <c>"]
    reasons += [f"reason {letter}" for letter in "abcdefghijk"]
    made = data.save(
        tmp_path / "mine",
        {"train": train, "test": [row("ab", "c")]},
        [Rejected(n, reason, "") for n, reason in enumerate(reasons)],
        "Mine.",
        license="mit",
        tokens={"train": [3, 4, 5, 6, 900]},
        source=str(source),
    )
    header, text = card_of(tmp_path / "mine")
    rows = table(text)
    assert ["train", "5", "characters", "5", "803", "1,002"] in rows
    assert ["test", "1", "characters", "3", "3", "3"] in rows
    assert ["train", "5", "tokens", "5", "721", "900"] in rows
    assert "Rejected rows: 17, of which 5 are duplicates." in text
    assert rows[rows.index(["reason", "rows"]) + 1] == ["repeats line N", "4"]
    assert ["nearly repeats line N", "1"] in rows and ["other reasons", "4"] in rows
    assert "a \\| b &lt;c>" in text
    assert "Source: `raw.csv`" in text and made["sha256"]["source"] in text
    assert str(tmp_path) not in text
    assert (header["license"], made["license"]) == ("mit", "mit")
    assert header["size_categories"] == ["n<1K"]
    assert re.search(r"!\[[^]]+\]\(lengths.png\)", text)
    assert (tmp_path / "mine" / "lengths.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("raw", "task"),
    [
        ({"text": "a", "label": "b"}, "text-classification"),
        ({"text": "a"}, "text-generation"),
        ({"prefix": "a", "middle": "b", "suffix": "c"}, "text-generation"),
    ],
)
def test_card_names_the_task_of_the_kind(tmp_path, raw, task):
    data.save(tmp_path / "mine", {"train": [data.to_row(raw, 1)]}, [], "")
    header, text = card_of(tmp_path / "mine")
    assert header["task_categories"] == [task]
    assert f"Kind of rows: {header['tags'][0]}." in text


def test_license_is_unknown_and_printed(tmp_path, capsys):
    data.save(tmp_path / "mine", {"train": [row("a")]}, [], "", source="mine.csv")
    assert "license: unknown, because the source names none" in capsys.readouterr().out
    assert "Ask the author of the source" in card_of(tmp_path / "mine")[1]


@pytest.mark.parametrize(
    ("card", "license", "printed"),
    [
        ({"license": "mit"}, "mit", ""),
        ({"license": ["cc-by-4.0", "mit"]}, "cc-by-4.0", ""),
        ({}, "unknown", "the card of a/b names none"),
        (None, "unknown", "the card of a/b names none"),
        (OSError("offline"), "unknown", "can't be read (OSError)"),
    ],
)
def test_license_of_a_hub_dataset(monkeypatch, capsys, card, license, printed):
    import huggingface_hub

    class Hub:
        def __init__(self, token: object) -> None:
            pass

        def dataset_info(self, name: str) -> SimpleNamespace:
            assert name == "a/b"
            if isinstance(card, Exception):
                raise card
            return SimpleNamespace(card_data=card)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert describing.license_of("a/b:main") == license
    out = capsys.readouterr().out
    assert printed in out and ("license: unknown" in out) == bool(printed)


@pytest.mark.parametrize(
    ("reason", "general"),
    [
        ("repeats line 7", "repeats line N"),
        (
            "too long: 1,024 tokens, the limit is 512",
            "too long: N tokens, the limit is N",
        ),
        ("not JSON: line 1, column 5.", "not JSON: line N, column N."),
        ("echo", "echo"),
    ],
)
def test_general_reason_has_no_numbers(reason, general):
    assert describing.general(reason) == general
