"""Find the tokens that end an answer, and write them into a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import data, recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

GENERATION = "generation_config.json"


def stop_tokens(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens that end an answer of a model.

    These are the tokenizer's EOS token, those in the model's generation_config.json,
    and those with which the chat template ends a turn.
    """
    found = [tokenizer.eos_token_id]
    if (folder / GENERATION).is_file():
        eos = json.loads((folder / GENERATION).read_text("utf-8")).get("eos_token_id")
        found += eos if isinstance(eos, list) else [eos]
    try:
        found += data.end_of_turn(tokenizer)
    except ValueError as error:
        print(f"the token that ends a turn is unknown: {error}")
    return list(dict.fromkeys(i for i in found if i is not None))


def write_stop_tokens(folder: Path) -> None:
    """Write all tokens that end an answer into a model's generation_config.json.

    transformers stops at these. A folder without a tokenizer stays as it is.
    """
    if not any((folder / f"tokenizer.{end}").is_file() for end in ("json", "model")):
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    found = stop_tokens(folder, tokenizer)
    file, config = folder / GENERATION, folder / "config.json"
    if not file.is_file():  # transformers would take these from config.json
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        fields = json.loads(config.read_text("utf-8"))
        kept = {name: fields[name] for name in names if fields.get(name) is not None}
        file.write_text(json.dumps(kept), encoding="utf-8")
    if found:
        change_json(file, eos_token_id=found if len(found) > 1 else found[0])


def change_json(file: Path, **fields: Any) -> None:
    """Set some fields of a JSON object in a file; a file with these stays as it is."""
    old = json.loads(file.read_text("utf-8"))
    if any(name not in old or old[name] != value for name, value in fields.items()):
        recipe.write_json(file, old | fields)
