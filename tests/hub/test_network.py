"""The client of the Hub: how long it waits, and what it asks again."""

from __future__ import annotations

import http.server
import time
from typing import ClassVar

import httpx
import pytest
from helpers.hub import served
from huggingface_hub import get_session

from colab_utils.hub import network


class Server(http.server.BaseHTTPRequestHandler):
    """Answers /<status>[/<Retry-After>]: this status twice, then 200; /wait never."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.command)
        _, status, *after = self.path.split("/")
        if status == "wait":
            time.sleep(0.5)
            return
        self.send_response(int(status) if len(self.asked) <= 2 else 200)
        if after:
            self.send_header("Retry-After", after[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    Server.asked.clear()
    with served(Server) as address:
        yield address


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(network.time, "sleep", found.append)
    return found


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", network.AGAIN)
def test_reading_is_tried_three_times(address, waited, capsys, method, status):
    with network.PatientClient() as client:
        answer = client.request(method, f"{address}/{status}")
    assert answer.status_code == 200 and Server.asked == [method] * 3
    assert waited == [1.0, 2.0]
    said = [f"The Hub answered {status}: again in {n} s" for n in (1, 2)]
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "503", 503),  # it may have been done
        ("GET", "404", 404),
        ("GET", "429/3600", 429),  # too long to wait
    ],
)
def test_other_answers_are_final(address, waited, method, path, status):
    with network.PatientClient() as client:
        assert client.request(method, f"{address}/{path}").status_code == status
    assert Server.asked == [method] and waited == []


@pytest.mark.parametrize(
    ("after", "pauses"),
    [
        ("0", [1, 2]),
        ("5", [5, 5]),
        ("Wed, 21 Oct 2015 07:28:00 GMT", [1, 2]),
        ("-3", [1, 2]),
        ("", [1, 2]),
    ],
)
def test_the_hub_may_ask_for_more_time(address, waited, after, pauses):
    with network.PatientClient() as client:
        path = after.replace(" ", "%20")
        assert client.get(f"{address}/503/{path}").status_code == 200
    assert waited == pauses


@pytest.mark.parametrize("given", [None, httpx.Timeout(None)])
def test_a_request_without_a_limit_gets_one(address, monkeypatch, given):
    monkeypatch.setattr(network, "LIMIT", httpx.Timeout(0.1))
    with network.PatientClient() as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{address}/wait", timeout=given)


def test_a_limit_that_is_given_stays(address, monkeypatch):
    monkeypatch.setattr(network, "LIMIT", httpx.Timeout(100))
    with network.PatientClient() as client, pytest.raises(httpx.ReadTimeout):
        client.get(f"{address}/wait", timeout=0.1)


def test_be_patient_keeps_the_hooks_of_huggingface_hub():
    before = get_session().event_hooks["request"]
    network.be_patient()
    session = get_session()
    assert isinstance(session, network.PatientClient)
    assert session.event_hooks["request"] == before and before
    network.be_patient()
    assert get_session() is session
