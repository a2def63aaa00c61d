"""How each artefact was made: recipe.json, the card for people, the push to the Hub."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from colab_utils.hub import tokens as auth

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
)
REPOSITORY = "Repository, "
# What a card says for the names that recipes give to numbers, where they say little.
MEASURES = {
    "agreement": "same token preferred by adapter and merged model",
    "difference": "relative difference of their scores",
    "losses": "held-out loss after merging into the weights",
}
SHARES = ("accuracy", MEASURES["agreement"])  # shown in percent
# The notice that its licence asks for.
LLAMA2 = (
    "Llama 2 is licensed under the [LLAMA 2 Community License]"
    "(https://ai.meta.com/llama/license/), Copyright (c) Meta Platforms, Inc. All "
    "Rights Reserved"
)
# How a whole model is asked, from the folder that holds its own.
ASKING = """\
```python
from transformers import pipeline

model = pipeline("text-generation", "{}", do_sample=False)
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
print(model(messages)[0]["generated_text"][-1]["content"])
```"""

# What stays here when a folder is pushed.
IGNORED = ["checkpoints/*", "rejected.jsonl", "made_of.json", "*.gguf", "gguf/*"]
IGNORED += ["Modelfile"]
IGNORED += ["*.part", ".*", "*/.*"]  # what a killed run leaves, and secrets in .env


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def address() -> str:
    """The project's repository, as the package's metadata gives it."""
    urls = metadata.metadata("colab_utils").get_all("Project-URL") or []
    return next(u.removeprefix(REPOSITORY) for u in urls if u.startswith(REPOSITORY))


def sha256(path: Path) -> str:
    """Hash of a file's content, to tell later whether it is the same file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(folder: Path, **fields: Any) -> dict[str, Any]:
    """Write recipe.json, an artefact's last file: where it stands, all is there."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    recipe = {**fields, "made": now, "versions": versions()}
    temporary = folder / "recipe.json.part"
    temporary.write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    temporary.replace(folder / "recipe.json")
    return recipe


def read(folder: Path) -> dict[str, Any]:
    """The recipe of an artefact that `runtime.artefact` found."""
    return json.loads((folder / "recipe.json").read_text(encoding="utf-8"))


def write_card(folder: Path, header: dict[str, Any], title: str, text: str) -> None:
    """README.md with the Hub's YAML header, a title and the text."""
    import yaml

    known = {key: value for key, value in header.items() if value}
    front = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    made_with = f"Made with [the free-GPU Llama course]({address()})."
    (folder / "README.md").write_text(
        f"---\n{front}---\n\n# {title}\n\n{text.strip()}\n\n{made_with}\n",
        encoding="utf-8",
    )


def _local(name: str) -> bool:
    """Whether a name is a path on this machine."""
    path = Path(name).expanduser()
    return path.is_absolute() or path.exists()


def public_name(name: str) -> str:
    """What others may read of a file's, a model's or a data set's name: no folders."""
    return Path(name).name if _local(name) else name


def write_trained(folder: Path, kind: str, dataset: Path, **fields: Any) -> None:
    """Card and recipe of an adapter or a merged model (`kind`), trained on `dataset`.

    `fields` hold at least base_model, method and results; `tested` when not the whole
    test was asked, `merged_into` the kind of weights, `losses` that of each kind.
    """
    data = read(dataset)
    base, results = fields["base_model"], fields["results"]
    source, name = public_name(data["source"]), f"`{public_name(base)}`"
    origin = f"`{source}`"
    if base == "demo":
        name = "the course's demo model"
    if source == "demo":
        origin = "the course's demo questions (Apache-2.0)"
    whole = kind == "model" or fields["method"] == "full"
    # The Hub knows models by their names: neither the demo nor a folder here is one.
    repository = None if base == "demo" or _local(base) else base
    llama2 = "llama-2" in base.lower()
    header = {
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "base_model": repository,
        "license": "llama2" if llama2 else None,
        "tags": ["llama", fields["method"]],
    }
    lines = []
    losses = {"losses": fields["losses"]} if "losses" in fields else {}
    for metric, found in (results | losses).items():
        named = found.items() if isinstance(found, dict) else [("", found)]
        metric = MEASURES.get(metric, metric)
        shown = ".1%" if metric in SHARES else ".4g"
        lines += [f"| {metric}{of and ', '}{of} | {x:{shown}} |" for of, x in named]
    numbers, rows = "\n".join(lines), data["rows"]
    tested, into = fields.get("tested", rows["test"]), fields.get("merged_into")
    merged = f" Merged into the {into} weights." if into else ""
    asked = f" Ask it so:\n\n{ASKING.format(folder.name)}" if whole else ""
    licence = LLAMA2 if llama2 else f"that of {name}"
    licence += " (Apache-2.0)" if base == "demo" else ""
    text = (
        f"{fields['method']} on {name}, trained on {rows['train']:,} rows from "
        f"{origin} and measured on {tested:,} held-out rows.{merged}\n\n"
        f"| measured | value |\n|---|---|\n{numbers}\n\n"
        "The prompt format is the tokenizer's chat template: it is what "
        "`tokenizer.apply_chat_template(messages, add_generation_prompt=True)` makes "
        f"of a question.{asked}\n\n"
        f"Licence: {licence}. The data has its own."
    )
    write_card(folder, header, folder.name, text)
    trained_on = {"name": dataset.name, "source": source}
    write(folder, kind=kind, name=folder.name, dataset=trained_on, **fields)


def push(
    folder: Path, repo_id: str, kind: str = "model", files: list[str] | None = None
) -> str | None:
    """Upload an artefact to a private repository on the Hub; nothing without a name.

    `kind` is "model" or "dataset". Of the folder go all files but those of `IGNORED`,
    or the given `files` alone, as a GGUF with its Modelfile. Returns the page's
    address. A push that was cut goes on at the next call: what the Hub holds is not
    sent again. Raises PermissionError when there is no token, or one that can't write,
    or when the repository is public already, ConnectionError when it was cut.
    """
    if not repo_id.strip():
        print("not pushed: HUB_NAME is empty")
        return None
    key = auth.token()
    if key is None:
        raise PermissionError(
            f"{folder} is saved, but not pushed to {repo_id}: there is no Hugging Face "
            f"token. Next: {auth.MAKE}, with the role `write`; {auth.STORE}."
        )
    from huggingface_hub import HfApi

    api = HfApi(token=key)
    kept = f"{folder} is saved, but not pushed to {repo_id}: "
    with auth.hub_errors(repo_id, key, before=kept):
        url = api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        private = api.repo_info(url.repo_id, repo_type=kind).private
    if private is False:  # it was there before
        raise PermissionError(
            f"{kept}that repository is public. Make it private at {url}/settings, or "
            "choose another HUB_NAME; then push again."
        )
    with auth.hub_errors(repo_id, key, before=kept):
        api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            repo_type=kind,
            allow_patterns=files,
            ignore_patterns=None if files else IGNORED,
        )
    print(f"pushed to {url} (private)")
    if not files and any(folder.rglob("*.gguf")):
        print("GGUF files were left out: push them by their names")
    return str(url)
