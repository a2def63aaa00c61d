from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from colab_utils import models
from colab_utils import recipe as recipes
from colab_utils.weights import merging, nf4
from colab_utils.weights import shards as storage
from colab_utils.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nobody_watches(headless):
    """No progress bars."""


def make_base(folder: Path, dtype: torch.dtype, shard: str = "1GB") -> Path:
    """A small random Llama, saved as a base model is on the Hub."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_hidden_layers, config.num_key_value_heads = 2, 2
    base = AutoModelForCausalLM.from_config(config).to(dtype)
    base.save_pretrained(folder, max_shard_size=shard)
    GenerationConfig(do_sample=False, eos_token_id=2).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, tokenizer, **options) -> Path:
    """A LoRA with random A and B, as an adapter of the course is saved."""
    torch.manual_seed(1)
    usual = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    get_peft_model(model, LoraConfig(**usual | options)).save_pretrained(folder)
    if options.get("init_lora_weights"):  # B begins at zero: nothing would be merged
        path = folder / "adapter_model.safetensors"
        save_file({n: torch.randn(t.shape) for n, t in load_file(path).items()}, path)
    if options.get("modules_to_save"):  # as if it had been trained
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if ".lora_" not in name:
                tensor += 0.1 * torch.randn(tensor.shape)
        save_file(tensors, path)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), torch.float16)


@pytest.fixture(scope="module")
def adapter(base, tokenizer, tmp_path_factory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapter"), tokenizer)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def reference(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """PEFT's own merge in float32, rounded once."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in merged.state_dict().items()}


def assert_merged(out: Path, base: Path, adapter: Path, dtype: torch.dtype) -> None:
    found, expected = weights(out), reference(base, adapter, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name
    old = weights(base)
    changed = {name for name in old if not torch.equal(old[name], found[name])}
    updates, replaced = merging.read_adapter(adapter)
    assert changed == {*updates, *replaced} and updates


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shard", ["1GB", "1MB"])
def test_the_merge_is_pefts_bit_for_bit(tokenizer, tmp_path, dtype, shard):
    base = make_base(tmp_path / "base", dtype, shard)
    files = len(list(base.glob("*.safetensors")))
    assert files == 1 if shard == "1GB" else files > 2
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    out = merging.merge(base, adapter, tmp_path / "deep" / "out")
    assert_merged(out, base, adapter, dtype)
    assert len(list(out.glob("*.safetensors"))) == files


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"lora_alpha": 7, "r": 3},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": ["down_proj"]},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7}},
        {"alpha_pattern": {"^model.layers.0.mlp.down_proj": 2, "v_proj": 5}},
        {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "o_proj"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_lora_in_all_its_kinds(base, tokenizer, tmp_path, options):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    out = merging.merge(base, adapter, tmp_path / "out")
    assert_merged(out, base, adapter, torch.float16)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        (
            {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
            "DoRA of model.embed_tokens",
        ),
    ],
    ids=str,
)
def test_kinds_that_cannot_be_merged_are_named(tokenizer, tmp_path, options, named):
    base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    with pytest.raises(ValueError, match=rf"Can't merge this adapter: .*({named})"):
        merging.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


OTHERS = {
    "IA3": IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_peft_method_is_named(base, tmp_path, kind):
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, OTHERS[kind]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"Can't merge this adapter: {kind}"):
        merging.merge(base, tmp_path / "other", tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=str
)
def test_a_resized_vocabulary_is_named(base, tmp_path, options):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(1030)
    lora = LoraConfig(r=4, target_modules=["q_proj"], **options)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    resized = r"is \(1024, 192\) .* wants \(1030, 192\): with another number of tokens"
    with pytest.raises(ValueError, match=resized):
        merging.merge(base, tmp_path / "adapter", tmp_path / "out")


def test_embeddings_that_were_saved_beside_are_merged(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    out = merging.merge(base, tmp_path / "adapter", tmp_path / "out")
    found, expected = weights(out), reference(base, tmp_path / "adapter", torch.float16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_without_an_adapter_says_what_makes_one(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="02_finetune_qlora makes one"):
        merging.merge(base, tmp_path, tmp_path / "out")


def test_the_merged_folder_is_a_whole_model(base, adapter, tokenizer, tmp_path):
    (base / "recipe.json").write_text("{}")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    try:
        out = merging.merge(base, adapter, tmp_path / "out")
    finally:
        (base / "recipe.json").unlink()
        (base / "pytorch_model.bin.index.json").unlink()
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    # Without a recipe the folder counts as unfinished, until its own is written.
    assert {"recipe.json", "pytorch_model.bin.index.json"}.isdisjoint(names)
    assert not any(name.startswith("adapter") for name in names)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    apart = PeftModel.from_pretrained(model, adapter).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found, expected = loaded(ids).logits, apart(ids).logits
    assert (found - expected).norm() / expected.norm() < 1e-2
    its = models.load_tokenizer(str(out))
    assert its.chat_template == tokenizer.chat_template
    assert its("What?")["input_ids"] == tokenizer("What?")["input_ids"]


def test_a_trained_adapter_is_merged(trained, tmp_path):
    _, folder = trained["qlora"]
    base = models.download("demo")
    out = merging.merge(base, folder, tmp_path / "out")
    assert_merged(out, base, folder, torch.float16)


def test_one_merged_weight(adapter, base):
    updates, _ = merging.read_adapter(adapter)
    name, update = next(iter(updates.items()))
    assert update.scale == 12 / 4
    weight = weights(base)[name]
    expected = weight.double() + 3 * update.b.double() @ update.a.double()
    expected = expected.half()
    found = merging.merged_weight(weight, update)
    assert found.dtype == torch.float32  # it is rounded where it is written
    torch.testing.assert_close(found.half(), expected, rtol=1e-3, atol=1e-7)


def changed(base: Path, folder: Path, **tensors) -> Path:
    """A copy of a base with some tensors replaced, or left out when None."""
    shutil.copytree(base, folder)
    kept = {n: t for n, t in (weights(base) | tensors).items() if t is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, rf"1 adapted weights are not in the base model .*{NAME}"),
        (torch.zeros(192, 64), rf"{NAME} is \(192, 64\) .* wants \(192, 192\)"),
        (torch.zeros(192, 192, dtype=torch.uint8), "stored as U8 .* 16-bit weights"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(base, adapter, tmp_path, tensor, message):
    wrong = changed(base, tmp_path / "wrong", **{NAME: tensor})
    with pytest.raises(ValueError, match=message):
        merging.merge(wrong, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_without_weights_is_refused(adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no safetensors weights"):
        merging.merge(tmp_path, adapter, tmp_path / "out")


def test_a_base_that_lacks_a_shard_is_refused(adapter, tmp_path):
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    shards = storage.find_shards(base)
    shards[1].unlink()
    lacks = f"lacks 1 of {len(shards)} weight files .*{shards[1].name}"
    with pytest.raises(FileNotFoundError, match=lacks):
        merging.merge(base, adapter, tmp_path / "out")


@pytest.fixture
def older(tmp_path) -> Path:
    """A model that an earlier run has made."""
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("older")
    (folder / "made_of.json").write_text("{}")
    return folder


def assert_untouched(older: Path) -> None:
    assert {file.name for file in older.iterdir()} == {"config.json", "made_of.json"}
    assert (older / "config.json").read_text() == "older"
    assert list(older.parent.iterdir()) == [older], "half a model was left behind"


def test_a_merge_may_be_made_again_before_it_has_a_recipe(
    base, adapter, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORKSPACE", str(tmp_path))
    out = Workspace.open().new("models", "mine")
    merging.merge(base, adapter, out)
    assert not (out / "recipe.json").exists()  # 04 writes it later, if it comes so far
    assert Workspace.open().new("models", "mine") == out
    (out / "made_of.json").unlink()
    with pytest.raises(FileExistsError, match="was not made here"):
        Workspace.open().new("models", "mine")


def test_a_base_cut_short_leaves_an_older_model(base, adapter, tmp_path, older):
    cut = tmp_path / "cut"
    shutil.copytree(base, cut)
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(ValueError, match="cut short: download the model again"):
        merging.merge(cut, adapter, older)
    assert_untouched(older)


class Interrupted:
    """`merged_weight`, where the reader stops the cell after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left, self.merge = calls, merging.merged_weight

    def __call__(self, *args):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.merge(*args)


@pytest.fixture
def stopped(tokenizer, tmp_path, monkeypatch, older, capsys):
    """A merge that was stopped in its last file but one: base, adapter, number done."""
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    adapted, _ = merging.read_adapter(adapter)
    shards = storage.find_shards(base)
    calls = [sum(n in adapted for n, _ in storage.tensors_of(s)) for s in shards[:-1]]
    with monkeypatch.context() as patch:
        patch.setattr(merging, "merged_weight", Interrupted(sum(calls) - 1))
        with pytest.raises(KeyboardInterrupt):
            merging.merge(base, adapter, older)
    assert len(shards) > 2 and calls[-1]
    part = older.with_name(".mine.part")
    assert f"stopped: the next run goes on from {part}" in capsys.readouterr().out
    return base, adapter, len(shards) - 2


def test_a_stopped_merge_leaves_an_older_model_and_goes_on(stopped, older, capsys):
    base, adapter, done = stopped
    assert (older / "config.json").read_text() == "older"
    first = storage.find_shards(base)[0].name
    inode = (older.with_name(".mine.part") / first).stat().st_ino
    merging.merge(base, adapter, older)
    assert f"going on: {done} of {done + 2} files" in capsys.readouterr().out
    assert (older / first).stat().st_ino == inode, "it was made again"
    assert_merged(older, base, adapter, torch.float16)
    assert list(older.parent.iterdir()) == [older]
    assert not list(older.glob("unfinished*"))


@pytest.mark.parametrize("what", ["base", "adapter", "weights", "note"])
def test_a_stopped_merge_of_other_things_begins_anew(
    stopped, tokenizer, tmp_path, older, capsys, what
):
    base, adapter, _ = stopped
    kind = "dequantized" if what == "weights" else "original"
    if what == "base":  # another last byte, the same size
        path = storage.find_shards(base)[0]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif what == "adapter":
        adapter = make_adapter(base, tmp_path / "other", tokenizer, lora_alpha=5)
    elif what == "note":  # killed while it was written
        note = older.with_name(".mine.part") / "made_of.json"
        note.write_text(note.read_text()[:-9])
    merging.merge(base, adapter, older, kind)
    assert "going on" not in capsys.readouterr().out
    clean = merging.merge(base, adapter, tmp_path / "clean", kind)
    found, expected = weights(older), weights(clean)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_disk_that_fills_up_gets_its_space_back(base, adapter, older):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (base / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            merging.merge(base, adapter, older)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(older)


@pytest.mark.parametrize("inside", [".", "snapshots/1"])
def test_what_is_merged_is_never_replaced(tokenizer, tmp_path, inside):
    base = make_base(tmp_path / "base" / inside, torch.float16)
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    (tmp_path / "base" / "config.json").touch()
    with pytest.raises(FileExistsError, match="holds what is merged"):
        merging.merge(base, adapter, tmp_path / "base")
    assert storage.find_shards(base)


# Merges over an older model and is killed, again and again: at every touch of the disk
# (argument `touches`), or after so many bytes, drawn at random. Then merges once more.
KILLED = """
import json, os, random, shutil, signal, sys
from pathlib import Path
from colab_utils.weights import merging
from colab_utils import recipe as recipes
from colab_utils.weights import shards as storage
import torch

torch.set_num_threads(1)  # a pool of threads would not survive the fork
base, adapter = Path("base"), Path("adapter")
models, out = Path("models"), Path("models/mine")
TOUCHES = "open os.rename os.remove os.mkdir os.rmdir".split()

def content(folder):
    if not folder.exists():
        return None
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [(file.name, recipes.sha256(file)) for file in files]

def child(task):
    sys.stdout.flush()
    process = os.fork()
    if not process:
        task()
        sys.stdout.flush()
        os._exit(0)
    return process

def end(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def merge():
    merging.merge(base, adapter, out)

def killed_at(touch):
    left = [touch]
    def hook(event, _):
        if event in TOUCHES:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    merge()

def written():
    sizes = (file.stat().st_size for file in (models / ".mine.part").glob("*"))
    try:
        return sum(sizes)
    except FileNotFoundError:  # it was just renamed
        return 0

assert end(child(merge)) == 0
total = merging._size(storage.find_shards(base))
before, new = content(base), content(out)
draw = random.Random(int(sys.argv[2]))
for trial in range(1, 1000):
    shutil.rmtree(models)
    out.mkdir(parents=True)
    (out / "config.json").write_text("older")
    (out / "made_of.json").write_text("{}")
    old = content(out)
    if sys.argv[1] == "touches":
        code = end(child(lambda: killed_at(trial)))
    else:
        process = child(merge)
        enough = draw.uniform(1, 0.9 * total)
        while written() < enough and not (out / "model-1.safetensors").exists():
            pass
        os.kill(process, signal.SIGKILL)
        code = end(process)
    assert content(base) == before
    state = {json.dumps(old): "old", json.dumps(new): "new"}.get(
        json.dumps(content(out)), "none"
    )
    if state == "none":
        assert not out.exists() and content(models / ".mine.old") == old
        assert content(models / ".mine.part") == new
    part = models / ".mine.part"
    done = len(list(part.glob("*.safetensors")))
    done *= (part / "made_of.json").exists()  # gone just before the moves
    assert end(child(merge)) == 0
    assert content(out) == new and content(base) == before
    assert os.listdir(models) == ["mine"]
    print("state:", state, done, code, flush=True)
    if code == 0 if sys.argv[1] == "touches" else trial == 12:
        break
"""


def killed(folder: Path, how: str, seed: int = 0) -> list[list[str]]:
    """State, finished files and exit code of each killed merge; "going on" lines."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED, how, str(seed)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HEADLESS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    told = sum(line.startswith("going on") for line in lines)
    states = [line.split()[1:] for line in lines if line.startswith("state: ")]
    assert told == sum(int(done) > 0 for _, done, _ in states)
    return states


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_touch_of_the_disk_nothing_is_lost(tokenizer, tmp_path):
    base = make_base(tmp_path / "base", torch.float16, "1MB")
    make_adapter(base, tmp_path / "adapter", tokenizer)
    found = killed(tmp_path, "touches")
    states = [state for state, _, _ in found]
    # Only between two renames it is under another name, where the next run finds it.
    order = ["old"] * states.count("old") + ["none"] + ["new"] * states.count("new")
    assert states == order and len(states) > 30
    files = len(storage.find_shards(base))
    assert {int(done) for _, done, _ in found} == set(range(files + 1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_random_moments_nothing_is_lost(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), adapter.mkdir()
    name, lora = "model.layers.{}.mlp.up_proj.weight", {}
    torch.manual_seed(0)
    for i in range(4):  # 20 MB each
        file = base / f"model-{i + 1}.safetensors"
        save_file({name.format(i): torch.randn(2500, 4000).half()}, file)
        stem = f"base_model.model.{name.format(i)}".removesuffix(".weight")
        lora[f"{stem}.lora_A.weight"] = torch.randn(4, 4000)
        lora[f"{stem}.lora_B.weight"] = torch.randn(2500, 4)
    save_file(lora, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (base / "config.json").write_text("{}")
    found = killed(tmp_path, "bytes")
    assert len(found) == 12 and sum(code == "-9" for _, _, code in found) > 5


def test_an_older_model_is_replaced(base, adapter, older):
    (older / "older.safetensors").write_text("x")
    left = older.with_name(f".{older.name}.part")  # of a run that was killed
    left.mkdir()
    (left / "junk.safetensors").write_text("x")
    assert merging.merge(base, adapter, older) == older
    names = {file.name for file in older.iterdir()}
    assert {"older.safetensors", "junk.safetensors"}.isdisjoint(names)
    assert list(older.parent.iterdir()) == [older]
    assert_merged(older, base, adapter, torch.float16)


def test_a_full_disk_is_seen_before_writing(base, adapter, monkeypatch, older):
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, size - 1))
    with pytest.raises(OSError, match=r"needs 2\.\d MiB, .*models has 2\.\d MiB free"):
        merging.merge(base, adapter, older)
    assert_untouched(older)


WATCH = """
import sys, threading, time
from pathlib import Path
import torch, safetensors.torch
from colab_utils.weights import merging
from colab_utils.weights import shards as storage

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

peak = before = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
merging.merge(*map(Path, sys.argv[1:]))
done.set(); thread.join()
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_model(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir(), adapter.mkdir()
    shape, layers = (2048, 4096), 24  # 16 MiB each in float16
    name = "model.layers.{}.mlp.up_proj.weight"
    random = torch.randn(shape).half()
    save_file(
        {name.format(i): random.clone() for i in range(layers)},
        base / "model.safetensors",
    )
    stem = "base_model.model." + name.removesuffix(".weight")
    ab = {"A": torch.randn(4, shape[1]), "B": torch.randn(shape[0], 4)}
    save_file(
        {
            f"{stem.format(i)}.lora_{which}.weight": tensor.clone()
            for i in range(layers)
            for which, tensor in ab.items()
        },
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8})
    )
    run = subprocess.run(
        [sys.executable, "-c", WATCH, base, adapter, tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    size = (tmp_path / "out" / "model.safetensors").stat().st_size / 2**20
    shutil.rmtree(tmp_path)
    assert size > 380
    # A few copies of one weight of 16 MiB, in 16 and 32 bits: not the model.
    assert float(run.stdout.splitlines()[-1]) < size / 2


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path, trained):
    _, adapter = trained["qlora"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "ch1.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else than a model"):
        merging.merge(models.download("demo"), adapter, tmp_path)
    assert (tmp_path / "thesis" / "ch1.tex").exists()


# --- rows, and what 4 bits hold -------------------------------------------------------


@pytest.mark.parametrize("block", [4096, 30_000, 100_000])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_rows_at_a_time_change_nothing(
    base, tokenizer, tmp_path, monkeypatch, block, options
):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    monkeypatch.setattr(merging, "BLOCK", block)
    out = merging.merge(base, adapter, tmp_path / "out")
    assert_merged(out, base, adapter, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block", [4096, 30_000, 1 << 21])
def test_the_weights_that_qlora_trained_beside(
    base, tokenizer, tmp_path, monkeypatch, block, dtype
):
    """The base is stored in float16 and loaded in `dtype`, then quantised."""
    import bitsandbytes.functional as bnb

    monkeypatch.setattr(merging, "BLOCK", block)
    targets = {"target_modules": ["q_proj"]}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **targets)
    recipes.write(adapter, dtype=str(dtype).removeprefix("torch."))
    out = merging.merge(base, adapter, tmp_path / "out", weights="dequantized")
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=models.quantization_config(),
        device_map={"": "cpu"},
    )
    quantised = {n: p for n, p in model.named_parameters() if hasattr(p, "quant_state")}
    found, old = weights(out), weights(base)
    updates, _ = merging.read_adapter(adapter)
    assert len(quantised) == 14 and set(updates) < set(quantised)
    for name, tensor in old.items():
        expected = tensor
        if name in quantised:
            weight = quantised[name]
            expected = bnb.dequantize_4bit(weight.data, weight.quant_state)
            assert expected.dtype == dtype
            assert not torch.equal(expected.half(), tensor)
        if name in updates:
            expected = merging.merged_weight(expected, updates[name])
        assert torch.equal(found[name], expected.half()), name


def test_without_a_recipe_the_dtype_is_that_of_the_files(
    base, adapter, tmp_path, capsys
):
    out = merging.merge(base, adapter, tmp_path / "out", weights="dequantized")
    assert "trained beside torch.float16, as far as we know" in capsys.readouterr().out
    other = tmp_path / "adapter"
    shutil.copytree(adapter, other)
    recipes.write(other, dtype="float16")
    said = merging.merge(base, other, tmp_path / "said", weights="dequantized")
    assert "as far as we know" not in capsys.readouterr().out
    found, expected = weights(out), weights(said)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(192, 512), (40, 192), (96, 64)])
def test_parts_are_dequantised_as_the_whole(monkeypatch, dtype, shape):
    import bitsandbytes.functional as bnb

    weight = torch.randn(shape, dtype=dtype)
    packed, state = bnb.quantize_4bit(
        weight, quant_type="nf4", compress_statistics=True
    )
    expected = bnb.dequantize_4bit(packed, state)
    for block in (64, 6400, 1 << 24):
        monkeypatch.setattr(nf4, "BLOCK", block)
        assert torch.equal(nf4.dequantised(weight, dtype), expected)


def test_the_dequantised_merge_is_the_trained_function(trained, tmp_path):
    _, folder = trained["qlora"]
    apart, _ = models.load_adapter(folder)
    ids = torch.arange(3, 60)[None]
    errors = {}
    for kind in ("original", "dequantized"):
        out = merging.merge(models.download("demo"), folder, tmp_path / kind, kind)
        with torch.inference_mode():
            expected = apart(ids).logits
            found = models.load_model(str(out)).eval()(ids).logits
        errors[kind] = ((found - expected).norm() / expected.norm()).item()
    assert errors["dequantized"] < 0.1 * errors["original"]


def test_other_weights_are_no_choice(base, adapter, tmp_path):
    with pytest.raises(ValueError, match="'4bit'; it can be: original, dequantized"):
        merging.merge(base, adapter, tmp_path / "out", weights="4bit")


@pytest.fixture
def tied(tmp_path) -> Path:
    """A base whose head is its embeddings, stored once."""
    config = AutoConfig.from_pretrained(models.location("demo"))
    config.num_hidden_layers, config.tie_word_embeddings = 1, True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


TIED = [
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"modules_to_save": ["lm_head"]}, "lm_head"),
    ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
    ({"modules_to_save": ["embed_tokens", "lm_head"]}, "lm_head.* and .*embed_tokens"),
]


@pytest.mark.parametrize(("options", "named"), TIED, ids=str)
@pytest.mark.parametrize("ensure", [False, True])
def test_an_adapter_of_tied_ends_is_refused(
    tied, tokenizer, tmp_path, options, named, ensure
):
    options = options | {"ensure_weight_tying": ensure}
    adapter = make_adapter(tied, tmp_path / "a", tokenizer, **options)
    with pytest.raises(ValueError, match=rf"they are tied.* changed .*{named}.*merged"):
        merging.merge(tied, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("options", "_"), TIED, ids=str)
def test_a_tied_base_that_holds_both_ends_is_merged(
    tied, tokenizer, tmp_path, options, _
):
    """Transformers ties what is equal: merged, the two are equal no longer."""
    tensors = weights(tied)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(tied, tmp_path / "a", tokenizer, **options)
    out = merging.merge(tied, adapter, tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    apart = PeftModel.from_pretrained(base, adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        found, expected = merged(ids).logits, apart(ids).logits
    assert (found - expected).norm() < 2e-3 * expected.norm()


# --- bad input, and folders as people have them ---------------------------------------


def damaged(adapter: Path, folder: Path, file: str, content: bytes | None) -> Path:
    """A copy of an adapter with one file's content replaced, or without it."""
    shutil.copytree(adapter, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b"cut"),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": null}'),
    ],
)
def test_an_adapter_that_cannot_be_read_is_named(
    base, adapter, tmp_path, file, content
):
    wrong = damaged(adapter, tmp_path / "wrong", file, content)
    with pytest.raises(ValueError, match=r"The adapter in .*wrong can't be read: "):
        merging.merge(base, wrong, tmp_path / "out")
    (wrong / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match=r"older adapter_model\.bin is not read"):
        merging.merge(base, wrong, tmp_path / "out")


def test_paths_may_be_strings(base, adapter, tmp_path):
    out = merging.merge(str(base), str(adapter), str(tmp_path / "out"))
    assert_merged(out, base, adapter, torch.float16)


def test_a_base_beside_an_adapter_stays_without_it(base, adapter, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, both / name)
    (both / "model.safetensors").rename(both / "weights.safetensors")
    out = merging.merge(both, adapter, tmp_path / "out")
    assert not list(out.glob("adapter*"))
    assert_merged(out, base, adapter, torch.float16)


def test_an_index_beside_the_whole_model_is_not_taken_over(base, adapter, tmp_path):
    stale = changed(base, tmp_path / "stale")
    index = json.dumps({"weight_map": {"x": "gone.safetensors"}})
    (stale / "model.safetensors.index.json").write_text(index)
    out = merging.merge(stale, adapter, tmp_path / "out")
    assert not (out / "model.safetensors.index.json").exists()
    assert_merged(out, base, adapter, torch.float16)


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 1e6])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_not_finite_is_named(base, tokenizer, tmp_path, older, number, whole):
    options = {"modules_to_save": ["lm_head"]} if whole else {}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model."
    name = "lm_head.weight" if whole else NAME.replace("weight", "lora_B.weight")
    tensors[stem + name][7, 3] = 2 * number
    save_file(tensors, adapter / "adapter_model.safetensors")
    named = "lm_head.weight" if whole else NAME
    with pytest.raises(ValueError, match=f"{named} is not finite once merged"):
        merging.merge(base, adapter, older)
    assert_untouched(older)


def test_large_numbers_are_finite_though_their_sum_is_not(base, tokenizer, tmp_path):
    options = {"modules_to_save": ["lm_head"]}
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"].fill_(1000)
    save_file(tensors, adapter / "adapter_model.safetensors")
    out = merging.merge(base, adapter, tmp_path / "out")
    assert (weights(out)["lm_head.weight"] == 1000).all()


def test_a_merged_model_is_not_made_again(base, tokenizer, tmp_path, capsys):
    adapter = make_adapter(base, tmp_path / "adapter", tokenizer)
    out = merging.merge(base, adapter, tmp_path / "out")
    (out / "recipe.json").touch()
    assert merging.merge(base, adapter, out) == out
    assert f"merged already: {out}" in capsys.readouterr().out
    assert (out / "recipe.json").exists()
    whole = weights(out)
    for file in ("model.safetensors", "tokenizer.json"):  # but what lacks something is
        (out / file).unlink()
        merging.merge(base, adapter, out)
        assert "merged already" not in capsys.readouterr().out
        found = weights(out)
        assert all(torch.equal(found[name], whole[name]) for name in whole)
        assert not (out / "recipe.json").exists()
    tokenizer = models.load_tokenizer(str(adapter))
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    merging.merge(base, adapter, out)
    assert models.load_tokenizer(str(out)).chat_template == "{{ messages }}"
    merging.merge(base, adapter, out, "dequantized")
    assert "merged already" not in capsys.readouterr().out


def test_the_hubs_cache_downloaded_again_is_the_same_base(
    base, adapter, tmp_path, capsys
):
    blob = tmp_path / "blobs" / (64 * "a")
    blob.parent.mkdir()
    snapshot = tmp_path / "snapshot"
    shutil.copytree(base, snapshot)
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    out = merging.merge(snapshot, adapter, tmp_path / "out")
    os.utime(blob, ns=(1, 1))
    merging.merge(snapshot, adapter, out)
    assert "merged already" in capsys.readouterr().out


def test_what_a_killed_merge_left_is_counted_as_room(base, adapter, monkeypatch, older):
    """A merge killed near its end holds the space that the next one needs."""
    shards = storage.find_shards(base)
    size = sum(shard.stat().st_size for shard in shards)
    part = older.with_name(".mine.part")
    part.mkdir()
    others = merging._others(base, adapter)
    made_of = merging._made_of(shards, adapter, others, "None")
    (part / "made_of.json").write_text(made_of)
    (part / "unfinished").write_bytes(bytes(size - 1))
    usage = namedtuple("usage", "total used free")

    def disk(_: Path) -> usage:
        used = sum(file.stat().st_size for file in part.iterdir())
        return usage(0, 0, int(1.1 * size) - used)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    merging.merge(base, adapter, older)
    assert_merged(older, base, adapter, torch.float16)


def test_a_model_that_was_not_merged_here_is_never_replaced(base, adapter, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    with pytest.raises(FileExistsError, match="something else than a model that was"):
        merging.merge(base, adapter, mine)
    assert weights(mine) and list(tmp_path.iterdir()) == [mine]


def test_a_file_is_no_place_for_a_model(base, adapter, tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(FileExistsError, match="out holds something else"):
        merging.merge(base, adapter, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_larger_disk_is_followed(base, adapter, tmp_path, there):
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    place = tmp_path / "large" / "model"
    if there:
        merging.merge(base, adapter, place, "dequantized")
    link = tmp_path / "small" / "out"
    link.symlink_to(place)
    assert merging.merge(base, adapter, link) == place
    assert link.is_symlink() and list(link.parent.iterdir()) == [link]
    assert_merged(link, base, adapter, torch.float16)


def test_the_base_gives_what_the_adapter_lacks(base, adapter, tmp_path):
    bare, whole = tmp_path / "bare", tmp_path / "whole"
    bare.mkdir()
    for file in adapter.glob("adapter_*"):
        shutil.copyfile(file, bare / file.name)
    shutil.copytree(base, whole)
    own = models.load_tokenizer(str(adapter))
    own.chat_template = "{{ messages[0] }}"
    own.save_pretrained(whole)
    texts = ("LICENSE.txt", "USE_POLICY.md", "merges.txt")
    for name in (*texts, "notes.md"):
        (whole / name).write_text(name)
    out = merging.merge(whole, bare, tmp_path / "out")
    assert models.load_tokenizer(str(out)).chat_template == "{{ messages[0] }}"
    assert all((out / name).read_text() == name for name in texts)
    assert not (out / "notes.md").exists()
    # With a tokenizer of its own, the adapter's template is the one.
    its = models.load_tokenizer(str(adapter))
    its.chat_template = "{{ messages }}"
    its.save_pretrained(bare, save_jinja_files=False)
    assert not (bare / "chat_template.jinja").exists()
    out = merging.merge(whole, bare, tmp_path / "again")
    assert models.load_tokenizer(str(out)).chat_template == "{{ messages }}"


def test_two_merges_at_once_are_refused(base, adapter, tmp_path, monkeypatch):
    merged, refused = merging.merged_weight, []

    def meanwhile(*given):
        with pytest.raises(RuntimeError, match="Something else is writing into"):
            merging.merge(base, adapter, tmp_path / "out")
        refused.append(1)
        return merged(*given)

    monkeypatch.setattr(merging, "merged_weight", meanwhile)
    out = merging.merge(base, adapter, tmp_path / "out")
    monkeypatch.undo()
    assert refused
    assert_merged(out, base, adapter, torch.float16)
    assert merging.merge(base, adapter, out) == out  # the lock is open again


def test_ids_without_embeddings_are_told(base, adapter, tmp_path, capsys):
    merging.merge(base, adapter, tmp_path / "out")
    assert "embeddings" not in capsys.readouterr().out
    larger = tmp_path / "larger"
    shutil.copytree(adapter, larger)
    tokenizer = models.load_tokenizer(str(adapter))
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(larger)
    merging.merge(base, larger, tmp_path / "again")
    told = "the tokenizer has ids up to 1,025, the model 1,024 embeddings"
    assert told in capsys.readouterr().out
