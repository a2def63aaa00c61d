"""The rules that filter rows: what each rejects, and what it must not reject."""

from __future__ import annotations

import ipaddress
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colab_utils import data
from colab_utils.data.curation import dataset_rules, patterns, quality


def make(answer: str, prompt: str = "What is it?", **more) -> data.Row:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": turns, "line": 1, **more}


RULES = [
    quality.Words(1, 2000),
    quality.echo,
    quality.refusal,
    quality.repetition,
    quality.code_fences,
    quality.damage,
    quality.personal,
    quality.urls,
    quality.WordList(["stupid", "shut up"]),
    quality.Language("en"),
    dataset_rules.Truncation(),
    dataset_rules.Formats(),
]
CODE = "```python\ndef area(r):\n    return 3.14 * r**2\n```"
GOOD = [
    "Paris",
    "+213",
    "The Corford was an aircraft of the army.",  # "was an aircraft" has "as an ai"
    "As an AI researcher, she wrote three papers about it.",
    "He said that an AI can play chess, and that it plays well.",
    "I am sorry, I forgot the number of the house.",
    "The distinct values are 3, 5, 7 and 9.",
    "arr = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
    CODE,
    "À Évian, crème brûlée.",
    "Der Ärger über Ölpreise.",
    "A IRMÃ” e o IRMÃO",
    "ÂGÉ de 12 ans",
    "She works 12.5 hours a day, 5 days a week: 12.5 * 5 = <<12.5*5=62.5>>62.5 hours.",
    "The number is 1,000,000,000 or 1 000 000 000.",
    "pi is 3.14159265358979",
    "Version 1.2.3.4 is in 192.168.0.1 and 127.0.0.1.",
    "Write to info@example.com, or clone git@github.com:me/it.git.",
    "Call (212) 555-0123.",
    "@app.route is a decorator, and 2024-11-26 is a day.",
    "See http://localhost:8080/ or https://www.example.com/a.",
    "He was not stupidly rich; the shop was shut. Up the hill stood another.",
    "HTML",
    "She sells sea shells, and the shells she sells are sea shells.",
]


@pytest.mark.parametrize("answer", GOOD)
def test_rules_keep_good_answers(answer):
    rules = [rule for rule in RULES if answer != "HTML" or rule is not RULES[-1]]
    assert data.first_reason(make(answer), rules) is None


BAD = [
    ("", "words: 0"),
    ("As an AI language model, I have never been there.", "refusal"),
    ("As an artificial intelligence, I have no family.", "refusal"),
    ("Unfortunately, I can't help with that.", "refusal"),
    ("I’m sorry, but I can’t help with that.", "refusal"),
    ("I cannot assist with this request.", "refusal"),
    ("As an AI, I do not have opinions.", "refusal"),
    ("no no no no no no", "repetition"),
    ("It is Paris. It is Paris. It is Paris. It is Paris. It is Paris.", "repetition"),
    ("We go home now.\nYou stay here now.\n" * 3, "repetition"),
    ("```\nprint(1)", "code fences"),
    ("The cafÃ© is open", "damage"),
    ("It\ufffds open", "damage"),
    ("a \x00 b", "damage"),
    ("donâ€™t", "damage"),
    ("Write to jane.doe@travel-agency.com.", "personal: e-mail"),
    ("Call +44 20 7946 1234 now.", "personal: phone"),
    ("Call 415-767-2676.", "personal: phone"),
    ("Pay with 4111 1111 1111 1111.", "personal: card"),
    ("To GB82 WEST 1234 5698 7654 32, please", "personal: account"),
    ("It was 81.2.69.142.", "personal: IP"),
    ("See https://travel-agency.com/maps.", "urls"),
    ("You STUPID machine.", "word list: stupid"),
    ("Oh, shut\nup!", "word list: shut up"),
    ("Das ist die Antwort, und sie ist nicht schwer.", "language: de"),
    ("C'est la plus grande ville et elle est dans le sud.", "language: fr"),
    ("Это столица большой страны", "language: most letters"),
    ("The reason why the city became so large is that the", "truncation"),
    ("The city became large because its harbor (the deepest one", "truncation: a br"),
    ("The city became large because of its deep harbor", "truncation"),
    ("The answer is: Paris.", "format: opening phrase"),
    ("Sure, it is Paris.", "format: opening phrase"),
    ('{"answer": "Paris"}', "format: JSON"),
    ("PARIS", "format: capitals"),
]


@pytest.mark.parametrize(("answer", "reason"), BAD)
def test_rules_reject_bad_answers(answer, reason):
    assert data.first_reason(make(answer), RULES).startswith(reason)


def test_echo_spares_tasks_that_restore_case_or_punctuation():
    restored = make("Hello, how are you?", "hello how are you")
    assert quality.echo(restored) is None
    assert quality.echo(make(" how are  you", "how are you")) is not None
    assert quality.echo({"text": "how", "label": "how", "line": 1}) is None


def test_filter_rows_keeps_order_and_gives_the_first_reason():
    rows = [{**make(text), "line": n} for n, (text, _) in enumerate(BAD)]
    good = [{**make(text), "line": 100 + n} for n, text in enumerate(GOOD[:5])]
    kept, rejected = data.filter_rows([*good[:2], *rows, *good[2:]], RULES)
    assert kept == good
    assert [one.line for one in rejected] == list(range(len(BAD)))
    assert all(
        one.reason.startswith(reason)
        for one, (_, reason) in zip(rejected, BAD, strict=True)
    )
    assert sum(data.count_reasons(rejected).values()) == len(BAD)
    assert next(iter(data.count_reasons(rejected).values())) == 6  # personal


def test_filter_rows_takes_functions_of_the_reader():
    def short(row):
        return "short" if len(data.answer_of(row)) < 3 else None

    kept, rejected = data.filter_rows([make("Bern"), make("Bo")], [short])
    assert (len(kept), rejected[0].reason) == (1, "short")


def test_personal_data_is_not_repeated_in_the_reason():
    reason = quality.personal(make("Write to jane.doe@travel-agency.com."))
    assert reason == "personal: e-mail address jan..."


def test_rules_look_at_every_kind():
    text = {"text": "You stupid machine", "line": 1}
    middle = {"prefix": "def f(", "middle": "x\x00", "suffix": ")", "line": 1}
    chosen = [{"role": "assistant", "content": "As an AI, I can't."}]
    pair = {"prompt": [], "chosen": chosen, "rejected": chosen, "line": 1}
    reasons = [data.first_reason(row, RULES) for row in (text, middle, pair)]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "word list",
        "damage",
        "refusal",
    ]


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_rules_can_be_sent_to_another_process(rule):
    again = pickle.loads(pickle.dumps(rule))
    rows = [make(text) for text, _ in BAD]
    assert [again(row) for row in rows] == [rule(row) for row in rows]
    assert "object at" not in repr(again)


def test_language_needs_a_known_code():
    with pytest.raises(ValueError, match=r"'xx'; it can be one of de, en"):
        quality.Language("xx")


@pytest.mark.slow
@given(st.text(), st.text())
def test_rules_take_any_text(prompt, answer):
    row = make(answer, prompt)
    for rule in RULES:
        reason = rule(row)
        assert reason is None or reason.isprintable()


@given(st.integers(10**11, 10**18 - 1))
def test_luhn_accepts_one_of_ten_check_digits(number):
    """The check digit is the one that the textbook algorithm gives."""
    digits = [int(sign) for sign in reversed(str(number))]
    total = sum(
        sum(divmod(2 * d, 10)) if i % 2 == 0 else d for i, d in enumerate(digits)
    )
    right = -total % 10
    found = [n for n in range(10) if patterns.luhn(f"{number}{n}")]
    expected = [right] if len(f"{number}") >= 12 else []
    assert found == expected or len(set(f"{number}")) == 1


@given(st.text("0123456789", min_size=18, max_size=18))
def test_mod_97_finds_each_changed_digit(digits):
    check = 98 - int(f"{digits}131400") % 97  # D is 13, E is 14
    number = f"DE{check:02}{digits}"
    assert patterns.mod_97(number)
    changed = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert not patterns.mod_97(changed)


@given(st.ip_addresses(v=4))
def test_ip_rule_agrees_with_ipaddress(address):
    found = patterns.personal_data(f"It was {address}.")
    public = ipaddress.ip_address(address).is_global
    if len(str(address)) > 7 or not public:
        assert (found == f"IP address {str(address)[:3]}...") == public


@given(st.text("àâçéèêëîïôûùüÿñæäöß", min_size=1), st.sampled_from(["cp1252"]))
def test_damage_finds_letters_that_were_decoded_wrongly(text, codec):
    damaged = text.encode().decode(codec, errors="replace")
    assert quality.damage(make(f"x{damaged}"))
    assert quality.damage(make(text)) is None


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    st.integers(1, 8),
    st.lists(st.sampled_from("xyz"), max_size=3),
)
def test_repeated_run_finds_five_in_a_row(phrase, times, before):
    words = [*before, *phrase * times, "end"]
    if times >= patterns.RUN:
        assert patterns.repeated_run(words)
    if found := patterns.repeated_run(words):
        text = " ".join(words)
        assert " ".join([*found] * patterns.RUN) in text
