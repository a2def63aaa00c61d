"""The parts under attack: each writes an older and a newer result to one place."""

from __future__ import annotations

import importlib
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from colab_utils import data, demo, weights
from colab_utils.workspace import Workspace

VERSIONS = ("old", "new")


class Part(ABC):
    """Something that the course writes: `place` in the workspace `root`.

    `inputs` is the folder of the files that it reads; `prepare` fills it. `work` names
    what a run keeps in `place` until it ends. `cost` is the column of the tries in
    `trials.ATTACKS`.
    """

    name: str
    place: Path
    work: tuple[str, ...] = ()
    cost = 2

    def __init__(self, inputs: Path, root: Path) -> None:
        self.inputs, self.root = inputs, root

    @property
    def out(self) -> Path:
        """The absolute path of the result."""
        return self.root / self.place

    def find(self) -> Path:
        """Return where a reader finds the finished result."""
        return Workspace(self.root).find(*self.place.parts)

    def prepare(self) -> None:
        """Write the inputs."""
        self.inputs.mkdir()

    @abstractmethod
    def load(self) -> None:
        """Load what `write` needs."""

    def begin(self) -> None:
        """Open a new workspace, as the first cell of a notebook does."""
        self.out.parent.mkdir(parents=True)

    def rehearse(self) -> None:
        """Write once elsewhere: forked processes find all modules imported."""
        root, self.root = self.root, self.root.with_name("rehearsal")
        self.begin()
        self.write("old")
        shutil.rmtree(self.root)
        self.root = root

    @abstractmethod
    def write(self, version: str) -> None:
        """Write one of `VERSIONS` to `place`, as a notebook does."""


class Dataset(Part):
    """`data.save`."""

    name, place = "dataset", Path("datasets/mine")

    def load(self) -> None:
        """Make 400 rows."""
        self.rows = [data.to_row(row, 1) for row in demo.questions()[:400]]

    def write(self, version: str) -> None:
        """Save 200 of the rows."""
        rows = self.rows[:200] if version == "old" else self.rows[200:]
        files = {"train": rows[:150], "test": rows[150:]}
        data.save(self.out, files, [], "", source="demo", version=version)


class Report(Part):
    """`evaluation.reports.save`."""

    name, place = "report", Path("reports/mine")

    def load(self) -> None:
        """Import the harness."""
        importlib.import_module("colab_utils.evaluation.reports")

    def write(self, version: str) -> None:
        """Save a report of two models with a figure."""
        from matplotlib.figure import Figure

        from colab_utils.evaluation import reports

        figure = Figure()
        figure.subplots().bar(["base", "adapter"], [len(version), 1])
        found = {name: _scores(version) for name in ("base", "adapter")}
        figures = {"scores": figure}
        reports.save(self.out, found, version, figures, name="mine", version=version)


def _scores(version: str) -> dict[str, Any]:
    """Return what the harness returns for nine questions of a task."""
    texts = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "target"), version)
    lists: dict[str, Any] = {"arguments": [["Q"]], "resps": [["A"]]}
    lists["filtered_resps"] = ["A"]
    samples = [{"doc_id": i, **texts, **lists} for i in range(9)]
    return {"results": {"task": {"acc,none": 0.5}}, "samples": {"task": samples}}


class Weights(Part):
    """A part that reads a model of two layers and two files, and two adapters."""

    def prepare(self) -> None:
        """Save the model, its tokenizer and the adapters."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        from colab_utils import models

        super().prepare()
        base = self.inputs / "base"
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(demo.MODEL)
        config.num_hidden_layers = 2
        model = AutoModelForCausalLM.from_config(config).half()
        model.save_pretrained(base, max_shard_size="1MB")
        tokenizer = models.load_tokenizer("demo")
        tokenizer.save_pretrained(base)
        for version in VERSIONS:
            lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            adapted = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
            adapted.save_pretrained(str(self.inputs / version))
            tokenizer.save_pretrained(self.inputs / version)

    def load(self) -> None:
        """Import torch."""
        importlib.import_module("torch")


class Merge(Weights):
    """`weights.merge`."""

    name, place, cost = "merge", Path("models/mine"), 1

    def find(self) -> Path:
        """Return the model, whose recipe notebook 04 writes."""
        return Workspace(self.root).new(*self.place.parts)

    def write(self, version: str) -> None:
        """Merge the adapter of this version."""
        weights.merge(self.inputs / "base", self.inputs / version, self.out)


class Export(Weights):
    """`weights.write_gguf`."""

    name, place = "GGUF export", Path("models/mine.gguf")

    def find(self) -> Path:
        """Return the file."""
        return self.out

    def write(self, version: str) -> None:
        """Export as F16 (the older file), or as Q8_0."""
        kind = {"old": "f16", "new": "q8_0"}[version]
        weights.write_gguf(self.inputs / "base", self.out, kind)
