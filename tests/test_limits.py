"""Foreign files that would never end: patterns of adapters, and chat templates."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from helpers.checkpoints import make_model
from helpers.templates import TEMPLATES
from helpers.tokenizer_kinds import make_tokenizer

from colab_utils import data, limits, models, weights
from colab_utils.data.tokens import rendering
from colab_utils.weights import adapters

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no alarm signal: there is no limit"
)
ENDLESS = r"(.*a+)+(.*a+)+(.*a+)+(.*a+)+(.*a+)+!"  # for a name with many letters a


@pytest.fixture
def short(monkeypatch):
    """Wait for a tenth of a second instead of ten."""
    real = limits.seconds

    @contextmanager
    def seconds(limit: float, what: str):
        with real(limit / 100, what):
            yield

    monkeypatch.setattr(limits, "seconds", seconds)


def test_seconds_ends_a_loop_and_a_regular_expression():
    for work in (
        lambda: [None for _ in iter(int, 1)],
        lambda: re.match(ENDLESS, "a" * 60),
    ):
        with (
            pytest.raises(TimeoutError, match=r"^Something took more than 0.1 s"),
            limits.seconds(0.1, "Something"),
        ):
            work()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def inner() -> None:
    with limits.seconds(100, "Inner"):
        pass
    while True:
        pass


def test_seconds_leaves_errors_and_outer_limits_alone():
    with pytest.raises(ZeroDivisionError), limits.seconds(5, "Something"):
        _ = 1 / 0
    with (
        pytest.raises(TimeoutError, match=r"^Outer took"),
        limits.seconds(0.1, "Outer"),
    ):
        inner()


def test_seconds_of_another_thread_is_no_limit():
    found = []

    def work() -> None:
        with limits.seconds(0.01, "Something"):
            time.sleep(0.05)
        found.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["done"]


FIELDS = ["target_modules", "exclude_modules", "alpha_pattern", "rank_pattern"]


@pytest.mark.parametrize("field", FIELDS)
def test_endless_pattern_of_an_adapter_is_refused(short, field):
    config = {field: {ENDLESS: 8} if field.endswith("_pattern") else ENDLESS}
    with pytest.raises(TimeoutError, match=r"^Matching the patterns in adapter_config"):
        adapters.check_patterns(config, ["a" * 60])


@pytest.mark.parametrize("field", FIELDS)
def test_pattern_that_is_no_regular_expression_is_refused(field):
    config = {field: {"(": 8} if field.endswith("_pattern") else "("}
    with pytest.raises(ValueError, match="which is no regular expression"):
        adapters.check_patterns(config, ["a"])


def test_usual_patterns_are_accepted():
    config = {
        "target_modules": r"(?:.*?(?:language|text).*?(?:q_proj|k_proj))|(?:\bmodel)",
        "alpha_pattern": {"q_proj": 8, r"layers\.[01]\..*": 4},
        "rank_pattern": None,
    }
    adapters.check_patterns(config, [f"model.layers.{i}.q_proj" for i in range(80)])


@pytest.mark.slow
def test_adapter_with_an_endless_pattern_is_not_loaded_and_not_merged(
    short, trained, tmp_path
):
    folder = shutil.copytree(trained["qlora"][1], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    endless = r"(.*[a-z]+)+(.*[a-z]+)+(.*[a-z]+)+(.*[a-z]+)+(.*[a-z]+)+!"
    config["alpha_pattern"] = {endless: 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(TimeoutError, match=r"in adapter_config\.json took"):
        models.load_adapter(folder)
    with pytest.raises(TimeoutError, match=r"in adapter_config\.json took"):
        weights.merge(models.download("demo"), folder, tmp_path / "out")


def endless(writes: str) -> str:
    loops = "".join(f"{{% for a{i} in range(99999) %}}" for i in range(4))
    return loops + writes + "{% endfor %}" * 4


@pytest.mark.parametrize("kind", ["loop", "condition"])
def test_endless_chat_template_is_refused(short, tokenizer, kind):
    writes = "x" if kind == "loop" else "{% if a0 == 'x' %}y{% endif %}"
    mine = models.load_tokenizer("demo")
    mine.chat_template = endless(writes)
    with pytest.raises(TimeoutError, match=r"^The chat template of .* took more than"):
        rendering.Conversations(mine).render([{"role": "user", "content": "Hi"}])
    assert data.to_messages({"question": "Hi", "answer": "Yes"})


def test_modelfile_of_a_chat_template_that_is_endless_on_one_date(short, tmp_path):
    tokenizer = make_tokenizer("llama2")
    trap = "{% if strftime_now('%Y') == 'qxzdate' %}" + endless("x") + "{% endif %}"
    tokenizer.chat_template = trap + TEMPLATES["llama2"]
    folder = make_model(tmp_path / "model", tokenizer, vocab_size=len(tokenizer))
    file = weights.write_gguf(folder)
    with pytest.raises(TimeoutError, match=rf"The chat template of {file.name} took"):
        weights.write_modelfile(file)
