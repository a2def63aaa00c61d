"""The card of an artifact (README.md), and the push of its folder to the Hub."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from colab_utils import parameters, recipe
from colab_utils.hub.errors import hub_errors
from colab_utils.hub.tokens import MAKE, STORE, token

REPOSITORY = "Repository, "
# A card's label for a measure whose name in the recipe is too short to understand.
MEASURES = {
    "agreement": "same top-1 token from adapter and merged model",
    "difference": "relative difference of their logits",
    "losses": "held-out loss after merging into the weights",
}
PERCENTAGES = ("accuracy", MEASURES["agreement"])
# The notice that Llama 2's license asks for.
LLAMA2 = (
    "Llama 2 is licensed under the [LLAMA 2 Community License]"
    "(https://ai.meta.com/llama/license/), Copyright (c) Meta Platforms, Inc. All "
    "Rights Reserved"
)
# Code that asks a whole model; run it in the folder that contains the model's folder.
ASKING = """\
```python
from transformers import pipeline

model = pipeline("text-generation", "{}", do_sample=False)
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
print(model(messages)[0]["generated_text"][-1]["content"])
```"""

# The same for a classifier.
CLASSIFYING = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", "{}")
print(classify("The text that you want to classify."))
```"""

# What the system says of a folder in which nothing can be written.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# Files that are not uploaded with a folder.
IGNORED = ["checkpoints*/*", "rejected.jsonl", "inputs.json", "*.gguf", "gguf/*"]
IGNORED += ["Modelfile"]
IGNORED += ["*.part", ".*", "*/.*"]  # leftovers of a killed run, and secrets in .env


@dataclass(frozen=True)
class Trained:
    """The facts on the card of an adapter (`kind` "adapter") or whole model ("model").

    `results` maps a measure to its value, or to named values: {"loss": {"base": 2.0}}.
    `tested` is the number of test rows if not all were used. `merged_into` is the kind
    of weights ("original" or "dequantized") that an adapter was merged into, `losses`
    the held-out loss after merging into each kind. `labels` are those of a classifier,
    in the order of its outputs.
    """

    kind: str
    base_model: str
    method: str
    results: dict[str, Any]
    tested: int | None = None
    merged_into: str | None = None
    losses: dict[str, float] | None = None
    labels: tuple[str, ...] | None = None


def address() -> str | None:
    """Return the URL of the project's repository, from the package's metadata.

    It is None if the package runs from a clone that was not installed.
    """
    try:
        urls = metadata.metadata("colab_utils").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    return next(
        (u.removeprefix(REPOSITORY) for u in urls if u.startswith(REPOSITORY)), None
    )


def write_card(folder: Path, header: dict[str, Any], title: str, text: str) -> None:
    """Write README.md with the Hub's YAML header, a title and the text."""
    import yaml

    known = {key: value for key, value in header.items() if value}
    front = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    course, url = "the free-GPU Llama course", address()
    if url is None:
        print(
            "the card has no link to the course, because colab_utils is not installed"
        )
    made_with = f"Made with [{course}]({url})." if url else f"Made with {course}."
    (folder / "README.md").write_text(
        f"---\n{front}---\n\n# {title}\n\n{text.strip()}\n\n{made_with}\n",
        encoding="utf-8",
    )


def add_section(card: Path, heading: str, text: str) -> None:
    """Add a section to the end of a card, or replace an earlier one of this heading.

    Comments that a reader does not see mark its beginning and its end. A card in a
    read-only folder, such as an input on Kaggle, stays as it is, and a printed line
    says so. Raises FileNotFoundError if there is no card.
    """
    begin, end = f"<!-- {heading} -->", f"<!-- end of {heading} -->"
    whole = card.read_text(encoding="utf-8")
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):  # no section, or one whose end was deleted
        before, after = whole.rstrip() + "\n\n", "\n"
    part = card.with_name(f"{card.name}.part")
    section = f"{begin}\n## {heading}\n\n{text.strip()}\n{end}"
    try:
        part.write_text(f"{before}{section}{after}", encoding="utf-8")
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        print(f"{card} is read-only, so it gets no section {heading!r}")
        return
    part.replace(card)


def _is_local(name: str) -> bool:
    """Return whether a name is a path on this machine."""
    path = parameters.path(name)
    return path.is_absolute() or path.exists()


def public_name(name: str) -> str:
    """Return the name of a file, model or dataset without its parent folders."""
    return Path(name).name if _is_local(name) else name


def card_header(trained: Trained) -> dict[str, Any]:
    """Return the Hub's YAML header for a trained model, as a dictionary."""
    base = trained.base_model
    # The demo and a local folder have no name on the Hub.
    named = base != "demo" and not _is_local(base)
    return {
        "library_name": "transformers" if _is_whole(trained) else "peft",
        "pipeline_tag": f"text-{'classification' if trained.labels else 'generation'}",
        "base_model": base if named else None,
        "license": "llama2" if _is_llama2(base) else None,
        "tags": ["llama", trained.method],
    }


def card_text(trained: Trained, name: str, dataset: dict[str, Any]) -> str:
    """Return the card's text for the model in the folder `name`.

    `dataset` is the recipe of the dataset that it was trained on.
    """
    base, rows = trained.base_model, dataset["rows"]
    model = "the course's demo model" if base == "demo" else f"`{public_name(base)}`"
    source = f"`{public_name(dataset['source'])}`"
    if dataset["source"] == "demo":
        source = "the course's demo questions (Apache-2.0)"
    tested = rows["test"] if trained.tested is None else trained.tested
    into = trained.merged_into
    merged = f" Merged into the {into} weights." if into else ""
    example = CLASSIFYING if trained.labels else ASKING
    asked = f" For example:\n\n{example.format(name)}" if _is_whole(trained) else ""
    license = LLAMA2 if _is_llama2(base) else f"that of {model}"
    license += " (Apache-2.0)" if base == "demo" else ""
    return (
        f"{trained.method} on {model}, trained on {rows['train']:,} rows from {source} "
        f"and measured on {tested:,} held-out rows.{merged}\n\n"
        f"| measured | value |\n|---|---|\n{_table(trained)}\n\n"
        f"{_reading(trained)}{asked}"
        f"\n\nLicense: {license}. The data has its own."
    )


def _reading(trained: Trained) -> str:
    """Return the sentence that says what the model reads."""
    if trained.labels is None:
        return (
            "The prompt format is the tokenizer's chat template: format a question "
            "with `tokenizer.apply_chat_template(messages, "
            "add_generation_prompt=True)`."
        )
    labels = ", ".join(json.dumps(n, ensure_ascii=False) for n in trained.labels[:50])
    more = ", ..." if len(trained.labels) > 50 else ""
    return (
        "It reads the text itself, without a chat template, and its head "
        f"(`score.weight`, float32) has an output for each of these labels: {labels}"
        f"{more}."
    )


def _is_whole(trained: Trained) -> bool:
    """Return whether the folder holds a whole model, not an adapter."""
    return trained.kind == "model" or trained.method == "full"


def _is_llama2(base: str) -> bool:
    return "llama-2" in base.lower()


def _table(trained: Trained) -> str:
    """Return one line of a Markdown table for each result."""
    lines = []
    losses = {"losses": trained.losses} if trained.losses is not None else {}
    for measure, found in (trained.results | losses).items():
        named = found.items() if isinstance(found, dict) else [("", found)]
        label = MEASURES.get(measure, measure)
        shown = ".1%" if label in PERCENTAGES else ".4g"
        lines += [f"| {label}{of and ', '}{of} | {x:{shown}} |" for of, x in named]
    return "\n".join(lines)


def write_trained(folder: Path, trained: Trained, dataset: Path, **extra: Any) -> None:
    """Write card and recipe of an adapter or a model, trained on the folder `dataset`.

    `extra` are further fields of the recipe.
    """
    data = recipe.read(dataset)
    text = card_text(trained, folder.name, data)
    write_card(folder, card_header(trained), folder.name, text)
    fields = {k: v for k, v in vars(trained).items() if v is not None}
    source = {"name": dataset.name, "source": public_name(data["source"])}
    recipe.write(folder, name=folder.name, dataset=source, **{**extra, **fields})


def push(
    folder: Path | str,
    repo_id: str | None,
    kind: str = "model",
    files: list[str] | None = None,
) -> str | None:
    """Upload an artifact to a private repository on the Hub, unless `repo_id` is blank.

    `kind` is "model" or "dataset". All files of the folder are uploaded except those in
    `IGNORED`, or only the given `files`, such as a GGUF with its Modelfile. Returns the
    page's address. An interrupted push continues at the next call: files that the Hub
    has are not sent again. Raises PermissionError if there is no token, if the token
    has no write permission, or if the repository is public already. Raises
    ConnectionError if the connection breaks.
    """
    folder, repo_id = Path(folder), parameters.clean(repo_id)
    if not repo_id:
        print("not pushed: HUB_NAME is empty")
        return None
    key = token()
    kept = f"{folder} is saved, but not pushed to {repo_id}: "
    if key is None:
        raise PermissionError(
            f"{kept}there is no Hugging Face token. Next: {MAKE}, with the role "
            f"`write`; {STORE}."
        )
    from huggingface_hub import HfApi

    api = HfApi(token=key)
    with hub_errors(repo_id, key, before=kept):
        url = api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
        private = api.repo_info(url.repo_id, repo_type=kind).private
    if private is False:  # it existed before
        raise PermissionError(
            f"{kept}that repository is public. Make it private at {url}/settings, or "
            "choose another HUB_NAME; then push again."
        )
    with hub_errors(repo_id, key, before=kept):
        api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            repo_type=kind,
            allow_patterns=files,
            ignore_patterns=None if files else IGNORED,
        )
    print(f"pushed to {url} (private)")
    if not files and any(folder.rglob("*.gguf")):
        print("GGUF files were not uploaded: push them by name")
    return str(url)
