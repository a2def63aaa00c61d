"""The harness gives the same results with our model class as with its own.

The tasks are local ones, and the reference is the harness's `HFLM` on the same model.
"""

from __future__ import annotations

import itertools
import json
import random
import resource

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from colab_utils import data, demo, evaluation, generation, models, plots
from colab_utils.evaluation import harness, reports, tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain():
    """The demo model in float32: 4-bit products differ with the size of a batch."""
    return models.load_model("demo").float().eval()


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory):
    """Write tasks of sixteen questions and five texts; return the folder and names."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = demo.questions()[:16]
    rows = [
        {"messages": data.to_messages(row), "category": row["category"]}
        for row in questions
    ]
    texts = [" ".join(row["question"] for row in questions[i::5]) for i in range(5)]
    names = tasks.write_questions(folder, rows, tokenizer)
    return folder, [*names, *tasks.write_texts(folder, texts)]


def run(lm, written, chat: bool) -> dict:
    folder, names = written
    return lm_eval.simple_evaluate(
        model=lm,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("chat", [True, False])
def test_results_equal_those_of_the_harness(plain, tokenizer, written, chat):
    ours = run(harness.Model(plain, tokenizer), written, chat)
    theirs = run(
        HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=8), written, chat
    )
    for name in written[1]:
        pairs = zip(ours["samples"][name], theirs["samples"][name], strict=True)
        for one, other in pairs:
            assert one["arguments"] == other["arguments"]
            for ours_, theirs_ in zip(one["resps"], other["resps"], strict=True):
                assert_same(ours_[0], theirs_[0])
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, abs=1e-4)


def assert_same(ours, theirs):
    if isinstance(theirs, str):
        assert ours == theirs
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4)
    else:
        assert ours[0] == pytest.approx(theirs[0], rel=1e-4) and ours[1] == theirs[1]


def ask(lm, kind: str, *arguments: tuple) -> list:
    requests = [
        Instance(request_type=kind, doc={}, arguments=given, idx=i)
        for i, given in enumerate(arguments)
    ]
    return getattr(lm, kind)(requests)


@pytest.fixture
def both(plain, tokenizer):
    theirs = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=4)
    return harness.Model(plain, tokenizer), theirs


def test_texts_without_context_and_long_texts_equal_those_of_the_harness(both):
    draw = random.Random(0)
    words = [
        draw.choice(("the", "capital", "of", "France", "Kenya")) for _ in range(900)
    ]
    long = " ".join(words)
    assert len(both[0].tok_encode(long)) > both[0].max_length
    for kind, given in (
        ("loglikelihood", [("", "France"), ("The capital ", "of"), ("", " the of")]),
        ("loglikelihood", [(long, " Kenya")]),
        ("loglikelihood_rolling", [(long,), ("Short.",)]),
    ):
        ours, theirs = (ask(lm, kind, *given) for lm in both)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)


def test_generation_ends_at_stop_strings_and_limits_as_in_the_harness(both):
    settings = (
        {"until": ["."], "max_gen_toks": 12},
        {"until": ["a", "\n"], "max_gen_toks": 5},
        {"until": [], "max_gen_toks": 3, "temperature": 0.0},
    )
    contexts = ("The capital of France", "People in Kenya speak", "In")
    given = [(context, setting) for setting in settings for context in contexts]
    ours, theirs = (ask(lm, "generate_until", *given) for lm in both)
    assert ours == theirs


def test_too_many_new_tokens_are_refused(plain, tokenizer):
    with pytest.raises(ValueError, match="lower max_gen_toks"):
        ask(
            harness.Model(plain, tokenizer),
            "generate_until",
            ("x", {"until": [], "max_gen_toks": 10**6}),
        )


def test_saved_results_are_in_the_format_of_the_harness(
    plain, tokenizer, written, tmp_path
):
    found = run(harness.Model(plain, tokenizer), written, chat=True)
    files = harness.save(found, tmp_path, "tuned")
    results = json.loads(files[0].read_text())
    assert results["model_name"] == "tuned"
    name = written[1][0]
    assert results["results"][name] == pytest.approx(found["results"][name])
    lines = files[1].read_text().splitlines()
    assert len(lines) == 16 and json.loads(lines[0])["resps"]
    assert set(results["task_hashes"]) == set(written[1])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="was not written"):
        harness.save(found, blocked, "tuned")


@pytest.mark.parametrize(("limit", "file"), [(100, "results_"), (9000, "samples_")])
def test_save_notices_a_file_that_is_cut_short(tmp_path, limit, file):
    """The harness only logs that the disk is full, and has created the file by then."""
    texts = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "target"), "x")
    lists = {"arguments": [], "resps": [["A"]], "filtered_resps": ["A"]}
    samples = [{**texts, **lists} for _ in range(99)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=rf"{file}.* was not written to its end"):
            harness.save({"results": {}, "samples": {"task": samples}}, tmp_path, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_report_replaces_an_older_one_and_keeps_it_if_saving_fails(
    plain, tokenizer, written, tmp_path, monkeypatch
):
    found = run(harness.Model(plain, tokenizer), written, chat=True)
    folder = tmp_path / "report"
    figure = plots.scores({"a": (0, 0.5, 0.4, 0.6)}, "x", "y")
    for text in ("first", "second"):
        reports.save(folder, {"tuned": found}, text, {"points": figure}, tested=16)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "points.png", "recipe.json", "tuned"]
    assert "second" in (folder / "README.md").read_text()
    assert len(list((folder / "tuned").glob("results_*.json"))) == 1

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(harness, "save", full)
    with pytest.raises(OSError, match="No space"):
        reports.save(folder, {"tuned": found}, "third", {})
    assert "second" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_bars_of_the_harness_are_hidden_and_errors_are_not(
    plain, tokenizer, written, capfd
):
    with harness.without_bars():
        run(harness.Model(plain, tokenizer), written, chat=True)
    assert "it/s" not in capfd.readouterr().err
    with pytest.raises(ValueError, match="inside"), harness.without_bars():
        raise ValueError("inside")


def test_choices_hold_the_answer_once_and_others_of_its_category(tokenizer, tmp_path):
    rows = [
        {"messages": data.to_messages(row), "category": row["category"]}
        for row in demo.questions()[:200]
    ]
    _, choose = tasks.write_questions(tmp_path, rows, tokenizer)
    kinds = {data.answer_of(row): row["category"] for row in rows}
    places = set()
    for one in map(json.loads, (tmp_path / f"{choose}.jsonl").open()):
        assert len(set(one["choices"])) == len(one["choices"]) == 4
        assert {kinds[choice] for choice in one["choices"]} == {kinds[one["answer"]]}
        places.add(one["choices"].index(one["answer"]))
    assert places == {0, 1, 2, 3}


def test_choices_come_from_all_rows_where_a_category_has_too_few(tokenizer, tmp_path):
    rows = [
        {"messages": data.to_messages({"question": f"{n}?", "answer": f"a{n}"}), **more}
        for n, more in enumerate([{"category": "x"}, {"category": "y"}, {}, {}, {}])
    ]
    _, choose = tasks.write_questions(tmp_path, rows, tokenizer)
    for one in map(json.loads, (tmp_path / f"{choose}.jsonl").open()):
        assert one["answer"] in one["choices"] and len(set(one["choices"])) == 4


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Return a conversation of the user and the assistant in turn."""
    roles = itertools.cycle(("user", "assistant"))
    said = [{"role": next(roles), "content": text} for text in texts]
    return [{"role": "system", "content": system}, *said] if system else said


def test_last_answer_of_a_conversation_is_asked_after_the_turns_before_it(
    plain, tokenizer, tmp_path
):
    """The prompts are those of the chat template, and the answers those of `accuracy`.

    The model has a chat template that takes a system prompt.
    """
    one, two = "What is the capital of France?", "And of Kenya?"
    rows = [
        {"messages": turns(one, "Paris")},
        {"messages": turns(one, "Paris", system="Answer in one word.")},
        {"messages": turns(one, "Paris", two, "Nairobi")},
        {"messages": turns(one, "Paris", two, "Nairobi", system="Be short.")},
        {"messages": turns("12", "[13]")},
    ]
    names = tasks.write_questions(tmp_path, rows, tokenizer)
    found = run(harness.Model(plain, tokenizer), (tmp_path, names), chat=True)
    prompts = [
        tokenizer.apply_chat_template(
            row["messages"][:-1], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    for name in names:
        samples = sorted(found["samples"][name], key=lambda some: some["doc_id"])
        assert [some["arguments"][0][0] for some in samples] == prompts
    said = evaluation.accuracy(plain, tokenizer, rows).answers
    samples = sorted(found["samples"][names[0]], key=lambda some: some["doc_id"])
    assert [some["filtered_resps"][0] for some in samples] == said
    assert [some["target"] for some in samples] == list(map(data.answer_of, rows))


def test_rows_without_an_answer_to_the_user_are_left_out(tokenizer, tmp_path, capsys):
    good = turns("Q?", "A")
    call = {"function": {"name": "f", "arguments": {}}}
    left_out = [
        {"messages": good, "tools": [{"function": {"name": "f"}}]},
        {"messages": [good[0], {**good[1], "tool_calls": [call]}]},
        {"messages": [*good, {"role": "tool", "content": "1"}, good[1]]},
        {"messages": turns("Q?", "A", "Q?")},
        {"messages": [good[1]]},
        {"messages": turns("Q?", "")},
        {"text": "t"},
    ]
    assert not any(map(tasks.can_ask, left_out)) and tasks.can_ask({"messages": good})
    tasks.write_questions(tmp_path, [{"messages": good}, *left_out], tokenizer)
    assert "7 of 8 rows are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing to ask"):
        tasks.write_questions(tmp_path, left_out, tokenizer)
    with pytest.raises(ValueError, match="no text"):
        tasks.write_texts(tmp_path, [""])


def test_template_writes_a_space_before_the_answer_in_the_format_of_llama_2(tokenizer):
    assert generation.before_answer(tokenizer) == " "
