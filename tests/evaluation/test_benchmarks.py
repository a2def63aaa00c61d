"""Benchmarks by name, from a stand-in for the Hub to a report.

The tasks are the harness's own. Each test asks in a fresh interpreter, because
huggingface_hub reads the address of the Hub when it is imported.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import datasets_hub
from helpers.hub import run_without_token, served

pytestmark = pytest.mark.slow
ASK = """
import functools, json, sys, time
from pathlib import Path
# Without a network, the libraries wait 23 s in all before they give up a dataset.
time.sleep = lambda seconds, wait=time.sleep: wait(min(seconds, 0.1))
import lm_eval
import lm_eval.tasks
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from colab_utils import models
from colab_utils.evaluation import benchmarks, harness, reports

# To read all of the harness's tasks takes 13 s.
folder = Path(lm_eval.tasks.__file__).parent
names = "arc hellaswag mmlu/default truthfulqa winogrande gsm8k piqa commonsense_qa"
paths = [str(folder / name) for name in names.split()]
benchmarks.TaskManager = functools.partial(
    TaskManager, include_defaults=False, include_path=paths
)

names, questions, compare = json.loads(sys.argv[1])
model, tokenizer = models.load_model("demo").float(), models.load_tokenizer("demo")
public = benchmarks.Benchmarks(names)
public.ask(harness.Model(model, tokenizer), questions)
table = public.table()
reports.save(Path("report"), public.found, table.to_markdown(), {})
drawn = {
    task: sorted({one["doc_id"] for one in samples})
    for results in public.found.values()
    for task, samples in results["samples"].items()
}
theirs = {}
for name in compare:
    theirs |= lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=[name],
        task_manager=public.manager,
        samples={name: drawn[name]},
    )["results"]
print("RESULT", json.dumps([table.to_dict("records"), drawn, theirs], default=str))
"""
SIX = "arc_challenge, hellaswag,mmlu,truthfulqa_mc2 , winogrande,,gsm8k"


def ask(folder: Path, address: str, *given: object):
    """Ask the demo model; return the rows of the table, and all that was printed."""
    done = run_without_token(
        ["-c", ASK, json.dumps(given)],
        folder,
        HF_ENDPOINT=address,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed, _, result = done.stdout.partition("RESULT ")
    return json.loads(result), printed


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a hub with the six, a broken file and a missing configuration."""
    root = tmp_path_factory.mktemp("hub")
    datasets_hub.write(root)
    broken = root / "tau/commonsense_qa"
    datasets_hub.write_repository(
        broken, ["default"], {"validation": 1}, lambda n: {"a": n}
    )
    (broken / "default/validation-00000-of-00001.parquet").write_bytes(b"not parquet")
    return root


def test_six_benchmarks_and_three_that_fail(hub, tmp_path):
    """The scores are those of the harness's own model class on the same questions."""
    names = f"piqa,{SIX},commonsense_qa,arc_easy"
    with served(datasets_hub.Hub.of(hub)) as address:
        (rows, drawn, theirs), printed = ask(
            tmp_path, address, names, 6, ["arc_challenge", "winogrande"]
        )
    assert "piqa is left out. DatasetNotFoundError: Dataset 'baber/piqa'" in printed
    assert re.search(r"commonsense_qa is left out\. .*not a parquet file", printed)
    assert "arc_easy is left out. ValueError: BuilderConfig 'ARC-Easy'" in printed

    found = {(row["benchmark"], row["metric"]): row for row in rows}
    assert {name for name, _ in found} == {name.strip() for name in SIX.split(",")} - {
        ""
    }
    six = {name: row["questions"] for (name, _), row in found.items()}
    assert six.pop("mmlu") == datasets_hub.MMLU_SUBJECTS  # one of each subject
    assert set(six.values()) == {6}
    assert drawn["arc_challenge"] != list(range(6))  # not simply the first ones
    assert found["gsm8k", "exact_match, strict-match"]["examples"] == "5"
    for (name, metric), row in found.items():
        value, _, between = row["score"].partition("% (")
        low, high = between.removesuffix(")").replace("%", "").split(" to ")
        assert 0 <= float(low) <= float(value) <= float(high) <= 100
        if name in theirs:
            key = metric.replace(", ", ",") if "," in metric else f"{metric},none"
            assert float(value) == round(100 * theirs[name][key])
    files = {
        path.name.split("_2")[0] for path in (tmp_path / "report").rglob("*.json*")
    }
    assert {"results", "samples_gsm8k", "samples_mmlu_virology"} <= files


def test_network_is_missing_and_an_earlier_download_is_used(hub, tmp_path):
    with served(datasets_hub.Hub.of(hub)) as address:
        before, _ = ask(tmp_path, address, "winogrande", 4, [])
    # Nobody listens at the address any more.
    again, printed = ask(tmp_path, address, "gsm8k,winogrande", 4, [])
    assert again == before and len(before[0]) == 1
    assert "gsm8k is left out. The Hub was not reached, and openai/gsm8k is" in printed


def test_wrong_name_is_refused_with_similar_ones():
    from colab_utils.evaluation import benchmarks

    with pytest.raises(
        ValueError, match=r"'helaswag' is not .*\(similar names: hellas"
    ):
        benchmarks.Benchmarks("mmlu, helaswag")
    assert benchmarks.Benchmarks(" , ").names == []
