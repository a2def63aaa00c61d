"""Compare our pins with Colab's versions, and our keywords with the libraries."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module, metadata
from keyword import iskeyword
from pathlib import Path

import pytest
from helpers import front_end
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from colab_utils import install

ROOT = Path(__file__).resolve().parents[1]
FREEZE = ROOT.parent / "shared" / "data" / "colab-pip-freeze.gpu.txt"

# Colab's machine, for markers such as `python_version < "3.11"`.
COLAB = {
    "implementation_name": "cpython",
    "implementation_version": "3.13.0",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.13.0",
    "python_version": "3.13",
    "sys_platform": "linux",
    "extra": "",
}

# Packages that ours need and Colab lacks. With the current versions there are none.
# Each name is one more download on every Colab machine.
ADDITIONS: set[str] = set()

# The same for the evaluation harness, which only notebook 12 downloads.
HARNESS = {
    "colorama",
    "dataproperty",
    "evaluate",
    "mbstrdecoder",
    "pathvalidate",
    "portalocker",
    "pytablewriter",
    "rouge-score",
    "sacrebleu",
    "sqlitedict",
    "tabledata",
    "tcolorpy",
    "typepy",
    "word2number",
}

# Colab has its own build of torch (`+cu128`). Elsewhere the course runs on the public
# release, which is newer. Colab's page shows widgets without jupyterlab_widgets.
OWN_VERSION = {"torch", "jupyterlab-widgets"}


def pins(path: Path) -> dict[str, str]:
    """Read `name==version` lines as canonical name to version."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


ON_COLAB = pins(ROOT / "tests" / "files" / "colab-pins.txt")
OURS = pins(ROOT / "requirements.txt")
EXTRA = {canonicalize_name(Requirement(pin).name): pin for pin in install.EXTRA}


def replaced(
    start: Iterable[str],
    there: dict[str, str],
    additions: Iterable[str],
    requires: Callable[[str], list[str]],
) -> list[str]:
    """List what installing `start` would replace in `there`, or add without notice.

    Packages in `there` have their requirements already, so only the requirements of
    added packages are followed.
    """
    problems, seen, queue = [], set(), list(start)
    added = {canonicalize_name(name) for name in (*start, *additions)}
    while queue:
        parent = queue.pop()
        if parent in seen:
            continue
        seen.add(parent)
        for line in requires(parent):
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate(COLAB):
                continue
            if name in added:
                queue.append(name)
            elif name not in there:
                problems.append(f"{parent} adds {line}")
            elif not requirement.specifier.contains(there[name], prereleases=True):
                problems.append(f"{parent} replaces {name} {there[name]}: {line}")
    return problems


def requires(name: str) -> list[str]:
    return metadata.requires(name) or []


def test_extra_packages_replace_nothing_on_colab():
    for name, pin in EXTRA.items():
        assert metadata.version(name) == pin.partition("==")[2]
    assert replaced(EXTRA, ON_COLAB, ADDITIONS, requires) == []


def test_harness_replaces_nothing_on_colab():
    name, _, version = install.HARNESS.partition("==")
    assert OURS[canonicalize_name(name)] == version == metadata.version(name)
    assert replaced([canonicalize_name(name)], ON_COLAB, HARNESS, requires) == []


def test_replaced_finds_replacements_and_additions():
    world = {
        "trl": [
            "datasets>=4.7",
            "accelerate>=1",
            'old; python_version < "3.10"',
            'gpu; extra == "gpu"',
            "helper",
        ],
        "helper": ["numpy<2", "TRL", "stranger>=1"],
    }
    there = {"datasets": "4.0.0", "accelerate": "1.14.0", "numpy": "2.1.3"}
    assert replaced(["trl"], there, ["helper"], world.__getitem__) == [
        "trl replaces datasets 4.0.0: datasets>=4.7",
        "helper replaces numpy 2.1.3: numpy<2",
        "helper adds stranger>=1",
    ]
    assert replaced(["trl"], there, [], world.__getitem__) == [
        "trl replaces datasets 4.0.0: datasets>=4.7",
        "trl adds helper",
    ]


def test_replaced_accepts_local_build():
    there = {"torch": "2.11.0+cu128"}
    assert replaced(["x"], there, [], lambda _: ["torch<3,>=2.11"]) == []


def test_requirements_equal_colab_versions():
    common = (OURS.keys() & ON_COLAB.keys()) - OWN_VERSION
    assert len(common) > 15
    assert {name: OURS[name] for name in common} == {
        name: ON_COLAB[name] for name in common
    }
    assert not EXTRA.keys() & ON_COLAB.keys()
    for name in EXTRA:
        assert f"{name}=={OURS[name]}" == EXTRA[name]


def test_jupyterlab_shows_pinned_ipywidgets():
    pinned = OURS["ipywidgets"], OURS["jupyterlab-widgets"]
    assert front_end.mismatch(*pinned) is None
    assert front_end.versions() == pinned


@pytest.mark.parametrize(
    ("kernel", "front", "needed"),
    [("7.7.1", "3.0.17", "1.1"), ("7.7.1", "1.0.2", "1.1"), ("8.1.9", "1.1.11", "3.0")],
)
def test_mismatch_names_versions_and_fix(kernel, front, needed):
    message = front_end.mismatch(kernel, front)
    assert (
        f"ipywidgets {kernel}" in message and f"jupyterlab_widgets {front}" in message
    )
    assert f"pip install 'jupyterlab_widgets=={needed}.*'" in message


def test_shipped_packages_are_on_colab():
    assert {canonicalize_name(name) for name in install.SHIPPED} <= ON_COLAB.keys()
    assert Version(ON_COLAB["torchao"]).release < install.TORCHAO


def test_dependencies_accept_colab_versions():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = ON_COLAB | {name: OURS[name] for name in EXTRA}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        found = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(found, prereleases=True), line


def test_colab_pins_equal_complete_list():
    # The whole list is not part of the project. The copy is compared with it where it
    # is next to the project.
    if FREEZE.is_file():
        whole = pins(FREEZE)
        assert {name: whole.get(name) for name in ON_COLAB} == ON_COLAB
        assert OURS.keys() & whole.keys() <= ON_COLAB.keys()


# --- keywords ------------------------------------------------------------------------

WATCHED = {
    "BitsAndBytesConfig": "transformers",
    "DPOConfig": "trl",
    "DPOTrainer": "trl",
    "FastDPOTrainer": "colab_utils.training.preferences",
    "FastGRPOTrainer": "colab_utils.training.rewards",
    "FastPPOTrainer": "colab_utils.training.rewards",
    "FastRewardTrainer": "colab_utils.training.reward_model",
    "FastSFTTrainer": "colab_utils.training.sft",
    "RewardConfig": "trl",
    "LoraConfig": "peft",
    "SFTConfig": "trl",
    "SFTTrainer": "trl",
    "Trainer": "transformers",
    "TrainingArguments": "transformers",
}


def is_call(node: ast.AST, *names: str) -> str | None:
    """Return the name of the function that `node` calls, if it is one of `names`."""
    if not isinstance(node, ast.Call):
        return None
    name = getattr(node.func, "id", getattr(node.func, "attr", None))
    return name if name in names else None


def keys(node: ast.AST | None, tables: dict[str, list[ast.AST]]) -> set[str]:
    """Return the keywords in `**node`, as far as the source shows them."""
    if isinstance(node, ast.Name):
        return {key for table in tables.get(node.id, []) for key in keys(table, {})}
    if isinstance(node, ast.Dict):
        found = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        pairs = zip(node.keys, node.values, strict=True)
        return found.union(*(keys(value, tables) for key, value in pairs if not key))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return keys(node.left, tables) | keys(node.right, tables)
    if is_call(node, "dict"):
        return call_keywords(node, tables)
    return set()


def call_keywords(call: ast.Call, tables: dict[str, list[ast.AST]]) -> set[str]:
    found = {keyword.arg for keyword in call.keywords if keyword.arg}
    return found.union(*(keys(k.value, tables) for k in call.keywords if not k.arg))


def keywords(source: str) -> dict[str, set[str]]:
    """Return the keywords that `source` passes to each watched class."""
    tree = ast.parse(source)
    tables: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name):
                    tables.setdefault(target.id, []).append(node.value)
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if name := is_call(node, *WATCHED):
            found.setdefault(name, set()).update(call_keywords(node, tables))
    return found


@cache
def sources() -> dict[str, str]:
    """Return the Python code of each notebook and module by file name."""
    from IPython.core.inputtransformer2 import TransformerManager

    plain = TransformerManager().transform_cell  # %magics and !commands to Python
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        found[path.name] = "\n".join(map(plain, code))
    for path in sorted((ROOT / "colab_utils").rglob("*.py")):
        found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    return found


@cache
def accepted(name: str) -> frozenset[str]:
    """Return the keywords that a class of the installed library accepts by name.

    A class with `**kwargs` passes them on, so those of its base class count, too.
    """
    found = set()
    for cls in getattr(import_module(WATCHED[name]), name).__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        passed_on = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
        # Keywords that only **kwargs accepts in the end are refused or dropped later.
        found.update({p.name for p in parameters} - passed_on)
        if not passed_on:
            break
    return frozenset(found)


def unknown(source: str) -> list[str]:
    return [
        f"{name}({keyword}=...)"
        for name, found in keywords(source).items()
        for keyword in sorted(found - accepted(name))
    ]


@pytest.mark.parametrize("name", sorted(sources()))
def test_keywords_exist_in_library(name):
    assert unknown(sources()[name]) == []


GONE = [
    "warmup_ratio",
    "group_by_length",
    "overwrite_output_dir",
    "logging_dir",
    "save_safetensors",
]


@pytest.mark.parametrize("keyword", GONE)
def test_removed_keyword_is_found(keyword):
    assert unknown(f"x = trl.SFTConfig(fp16=True, {keyword}=1)") == [
        f"SFTConfig({keyword}=...)"
    ]


def test_keywords_in_dictionaries_are_found():
    source = """
shared = {"fp16": True, "made_up_1": 1}
def build(more):
    local: dict = dict(bf16=False, made_up_2=2, **{"made_up_3": 3})
    SFTConfig(**shared, **local, **more)
    BitsAndBytesConfig(**(shared | {"made_up_4": 4}), load_in_4bit=True)
    return LoraConfig(r=8, **{**shared, "made_up_5": 5})
"""
    assert unknown(source) == [
        "SFTConfig(made_up_1=...)",
        "SFTConfig(made_up_2=...)",
        "SFTConfig(made_up_3=...)",
        "BitsAndBytesConfig(fp16=...)",
        "BitsAndBytesConfig(made_up_1=...)",
        "BitsAndBytesConfig(made_up_4=...)",
        "LoraConfig(fp16=...)",
        "LoraConfig(made_up_1=...)",
        "LoraConfig(made_up_5=...)",
    ]


def test_keywords_ignore_other_calls():
    assert keywords("print(end=''); config(warmup_ratio=1); f(**kwargs)") == {}
    assert keywords("SFTConfig(**{name: 1 for name in names})") == {"SFTConfig": set()}


NAME = st.from_regex(re.compile(r"[a-z][a-z_]{0,8}", re.ASCII), fullmatch=True).filter(
    lambda name: not iskeyword(name)
)


@given(st.dictionaries(NAME, st.integers()), st.sampled_from(sorted(WATCHED)))
def test_keywords_collect_all_arguments(arguments, name):
    inline = ", ".join(f"{key}={value}" for key, value in arguments.items())
    for source in (
        f"{name}({inline})",
        f"a.b.{name}(**dict({inline}))",
        f"t = {arguments!r}\n[{name}(1, **t)]",
    ):
        assert keywords(source) == {name: set(arguments)}
