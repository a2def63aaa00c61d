"""The endpoint against a server that fails in every way that servers do."""

from __future__ import annotations

import email.utils
import time
from itertools import pairwise

import pytest
from helpers.chat_server import serve

from colab_utils import creation

KEY = "sk-SecretSecretSecretSecretSecret12"


@pytest.fixture(autouse=True)
def key(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)  # no .env


def make(server, **changes) -> creation.Endpoint:
    settings = {"per_minute": 1e6, "first_wait": 0.01} | changes
    return creation.Endpoint(server.url, "small", **settings)


def turns(*prompts: str) -> list:
    return [[{"role": "user", "content": prompt}] for prompt in prompts]


def refuse(ask, kind, *prompts: str) -> str:
    """Return the error's text; neither it nor its causes contain the key."""
    with pytest.raises(kind) as caught:
        ask(turns(*prompts or ("a",)))
    error, text = caught.value, str(caught.value)
    while error:
        assert KEY not in f"{error}{error.args}"
        error = error.__cause__ or error.__context__
    return text


def test_endpoint_sends_model_parameters_and_key(server, capsys):
    ask = make(server, temperature=0.7)
    assert ask(turns("a", "b")) == ["answer to a", "answer to b"]
    first = server.seen[0]
    assert first["path"] == "/v1/chat/completions"
    assert first["key"] == f"Bearer {KEY}"
    assert first["body"] == {
        "model": "small",
        "messages": turns("a")[0],
        "temperature": 0.7,
    }
    assert ask.key == {"url": server.url, "model": "small", "temperature": 0.7}
    out = capsys.readouterr().out
    assert KEY not in f"{out}{vars(ask)}{ask.key}{ask}"


def test_endpoint_without_key_sends_none(server):
    make(server, key_name="")(turns("a"))
    assert server.seen[0]["key"] is None


def test_endpoint_counts_tokens_and_cost(server):
    ask = make(server, prices=(2.0, 8.0))
    server.events = [(503, {}, "")]
    ask(turns("a", "b"))
    assert ask.cost() == (
        "3 requests, 1 of them repeated; 20 + 10 tokens, $0.0001"
    )  # (20 x 2 + 10 x 8) / 1e6 = 0.00012
    assert make(server).cost() == "0 requests, 0 of them repeated; 0 + 0 tokens"


def test_endpoint_accepts_answers_without_usage(server):
    ask = make(server)
    body = '{"choices": [{"message": {"content": null}}], "usage": null}'
    server.events = [(200, {}, body)]
    assert ask(turns("a", "b")) == ["", "answer to b"]


@pytest.mark.parametrize(
    "event",
    [
        (500, {}, "oops"),
        (503, {}, ""),
        (529, {}, "overloaded"),
        (429, {}, '{"error": {"code": "rate_limit_exceeded"}}'),
        (200, {"Content-Type": "text/html"}, "<html>gateway</html>"),
        (200, {}, '{"choices": ['),
        (200, {}, '{"choices": []}'),
        (200, {}, "[1]"),
        "cut",
        1.0,
    ],
    ids=str,
)
def test_endpoint_repeats_what_may_pass(server, event):
    ask = make(server, timeout=0.3)
    ask(turns("first"))
    server.events = [event, event]
    assert ask(turns("a")) == ["answer to a"]
    assert len(server.seen) == 4 and ask.retries == 2


def test_endpoint_gives_up_after_six_tries(server):
    server.usual = (500, {}, f"bad key {KEY}")
    text = refuse(make(server), ConnectionError)
    assert "failed 6 times (the last time: 500: bad key ***" in text
    assert "run this cell again" in text and len(server.seen) == 6


@pytest.mark.slow
def test_endpoint_waits_double(server):
    server.usual = (500, {}, "")
    refuse(make(server, first_wait=0.05), ConnectionError)
    times = [one["time"] for one in server.seen]
    gaps = [b - a for a, b in pairwise(times)]
    for n, gap in enumerate(gaps):
        assert 0.05 * 2**n * 0.75 <= gap <= 0.05 * 2**n * 1.25 + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_endpoint_waits_as_long_as_the_server_asks(server, form):
    value = "0.6"
    if form == "date":  # whole seconds: the wait is 1 to 2 seconds
        value = email.utils.formatdate(time.time() + 2, usegmt=True)
    server.events = [(429, {"Retry-After": value}, "")]
    make(server)(turns("a"))
    first, second = (one["time"] for one in server.seen)
    assert second - first >= 0.6


@pytest.mark.parametrize("value", ["soon", "", "-3", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_endpoint_ignores_odd_retry_after(server, value):
    server.events = [(429, {"Retry-After": value}, "")]
    assert make(server)(turns("a")) == ["answer to a"]


def test_endpoint_stops_if_it_should_wait_for_hours(server):
    server.events = [(429, {"Retry-After": "7200"}, "daily limit")]
    text = refuse(make(server), ConnectionError)
    assert "it asks to wait 7,200 s" in text and len(server.seen) == 1


def test_endpoint_keeps_rate_limit(server):
    ask = make(server, per_minute=300)
    ask(turns("a", "b", "c", "d"))
    times = [one["time"] for one in server.seen]
    assert times[-1] - times[0] >= 3 * 60 / 300 - 0.05


def test_endpoint_wrong_key_names_it(server):
    server.usual = (401, {}, f'{{"error": "Incorrect API key: {KEY}"}}')
    text = refuse(make(server), PermissionError)
    assert "rejected the key OPENAI_API_KEY (401" in text and ".env" in text
    assert len(server.seen) == 1


def test_endpoint_missing_key(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server.usual = (401, {}, "")
    text = refuse(make(server), PermissionError)
    assert "rejected a request without a key (401: no text)" in text
    assert "OPENAI_API_KEY" in text


@pytest.mark.parametrize("status", [402, 429])
def test_endpoint_without_credit_stops(server, status):
    server.usual = (status, {}, '{"error": {"code": "insufficient_quota"}}')
    assert "no credit left" in refuse(make(server), PermissionError)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_endpoint_does_not_follow_a_redirect(server, status):
    with serve() as other:
        server.usual = (status, {"Location": f"{other.url}/chat/completions"}, "")
        text = refuse(make(server), ConnectionError)
        assert other.seen == []
    assert f"redirects to {other.url}" in text and "Nothing was sent there" in text


def test_endpoint_wrong_address(server):
    server.usual = (200, {}, "<html>welcome</html>")
    text = refuse(make(server), ConnectionError)
    assert "no answer to the first request" in text and "/v1" in text
    assert len(server.seen) == 1
    server.usual = (404, {}, "model not found")
    text = refuse(make(server), ConnectionError)
    assert "(404: model not found)" in text and "'small'" in text


def test_endpoint_server_not_running(server):
    with serve() as other:
        pass
    text = refuse(make(other), ConnectionError)
    assert "ConnectError" in text and "whether the server runs" in text


def test_endpoint_declined_prompt_is_empty_and_printed(server, capsys):
    ask = make(server)
    server.events = [None, (400, {}, "content filter")]
    assert ask(turns("a", "b", "c")) == ["answer to a", "", "answer to c"]
    assert "the server declined it (400: content filter)" in capsys.readouterr().out
    server.usual = (400, {}, "unknown parameter")  # the first request of another one
    assert "unknown parameter" in refuse(make(server), ConnectionError)


@pytest.mark.parametrize("url", ["", "gpt-4o", "ftp://a/v1", "https://"])
def test_endpoint_rejects_what_is_no_address(url):
    with pytest.raises(ValueError, match="is not the address of a server"):
        creation.Endpoint(url, "m")


def test_endpoint_needs_a_model(server):
    with pytest.raises(ValueError, match="needs the name of a model"):
        creation.Endpoint(server.url, "")
