"""A generator over HTTP: any server with OpenAI's chat completions."""

from __future__ import annotations

import datetime
import email.utils
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from colab_utils import hub
from colab_utils.creation.writing import Messages

if TYPE_CHECKING:
    import httpx

TRIES = 6
LONGEST_WAIT = 600.0  # seconds; a server that asks for more ends the run
# Try again: timeouts, rate limits and a server that is down or overloaded.
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached"}


class _TryAgainError(Exception):
    """A failure that may pass, and the seconds that the server asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """A generator that asks `<url>/chat/completions`, and counts tokens and cost.

    `url` is "https://api.openai.com/v1" or "http://localhost:11434/v1". The key is the
    secret `key_name` (see `hub.secret`); an empty name sends none. `prices` are dollars
    for a million tokens of prompts and of answers. `parameters` go to the server with
    each request, such as temperature=0.7. Requests that fail for a while are repeated
    up to five times, after waits that double from `first_wait` seconds, or that the
    server asks for.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_name: str = "OPENAI_API_KEY",
        per_minute: float = 60.0,
        prices: tuple[float, float] | None = None,
        timeout: float = 120.0,
        first_wait: float = 1.0,
        **parameters: Any,
    ) -> None:
        import httpx

        self.url = httpx.URL(url.rstrip("/"))
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise ValueError(
                f"{url!r} is not the address of a server: it must begin with https:// "
                "(or http:// on this machine) and often ends with /v1."
            )
        if not model:
            raise ValueError(
                f"{self.url} needs the name of a model that it offers: "
                "set GENERATOR_MODEL."
            )
        self.model, self.parameters, self.prices = model, parameters, prices
        self.key_name, self.interval = key_name, 60 / per_minute
        self.first_wait = first_wait
        self._key = hub.secret(key_name) if key_name else None
        header = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Redirects are not followed, so that no other server gets the key or the text.
        self._client = httpx.Client(
            headers=header, timeout=httpx.Timeout(timeout, connect=10)
        )
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may start
        self.requests = self.retries = self.answered = 0
        self.tokens = [0, 0]  # of prompts, of answers

    @property
    def key(self) -> dict[str, Any]:
        """What decides an answer besides the conversation, for `Kept`."""
        return {"url": str(self.url), "model": self.model, **self.parameters}

    def __call__(self, conversations: list[Messages]) -> list[str]:
        """Return an answer to each conversation; "" where the server declines it.

        Raises PermissionError if the key is missing, wrong or without credit, and
        ConnectionError if the server cannot be used or fails six times.
        """
        return [self._answer(messages) for messages in conversations]

    def cost(self) -> str:
        """Return what was asked: requests, tokens and, with prices, dollars."""
        asked, written = self.tokens
        text = (
            f"{self.requests:,} requests, {self.retries:,} of them repeated; "
            f"{asked:,} + {written:,} tokens"
        )
        if self.prices is None:
            return text
        dollars = (asked * self.prices[0] + written * self.prices[1]) / 1e6
        return f"{text}, ${dollars:,.4f}"

    def _answer(self, messages: Messages) -> str:
        wait = self.first_wait
        for attempt in range(1, TRIES + 1):
            self._wait_for_turn()
            try:
                return self._request(messages)
            except _TryAgainError as error:
                if attempt == TRIES or error.wait > LONGEST_WAIT:
                    raise ConnectionError(self._gave_up(attempt, error)) from None
                self._pause(max(error.wait, wait * random.uniform(0.75, 1.25)))
                wait = min(2 * wait, 60.0)
        raise AssertionError("the loop returns or raises")

    def _wait_for_turn(self) -> None:
        """Sleep until the rate limit allows a request."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self.interval
            self.requests += 1
        time.sleep(max(0.0, start - time.monotonic()))

    def _pause(self, seconds: float) -> None:
        """Let no request start for so long: the other workers would fail, too."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
            self.retries += 1

    def _request(self, messages: Messages) -> str:
        """Ask once; raises _TryAgainError for a failure that may pass."""
        import httpx

        body = {"model": self.model, "messages": messages, **self.parameters}
        try:
            reply = self._client.post(f"{self.url}/chat/completions", json=body)
        except httpx.ConnectError as error:
            raise self._passing(f"{type(error).__name__}: {error}") from None
        except httpx.TransportError as error:  # a timeout, or a connection that broke
            raise _TryAgainError(f"{type(error).__name__}: {error}") from None
        if reply.status_code in AGAIN and not NO_CREDIT & set(_error_codes(reply)):
            reason = f"{reply.status_code}: {self._said(reply)}"
            raise _TryAgainError(reason, _asked_wait(reply))
        if reply.status_code != 200:
            return self._refused(reply)
        try:
            parsed = reply.json()
            text = parsed["choices"][0]["message"]["content"] or ""
            usage = parsed.get("usage") or {}
            counts = [usage.get(f"{of}_tokens") or 0 for of in ("prompt", "completion")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            reason = f"not a chat completion: {self._said(reply)}"
            raise self._passing(reason) from None
        with self._lock:
            self.answered += 1
            self.tokens = [a + b for a, b in zip(self.tokens, counts, strict=True)]
        return str(text)

    def _passing(self, reason: str) -> Exception:
        """Return the error to raise; a server that has never answered is not there."""
        if self.answered:
            return _TryAgainError(reason)
        return ConnectionError(
            f"{self.url} gave no answer to the first request ({reason}). Check the "
            "address (it often ends with /v1) and whether the server runs."
        )

    def _refused(self, reply: httpx.Response) -> str:
        """Raise the error that a status stands for; return "" for a declined prompt."""
        status, said = reply.status_code, self._said(reply)
        if status in (401, 403):
            key = f"the key {self.key_name}" if self._key else "a request without a key"
            raise PermissionError(
                f"{self.url} rejected {key} ({status}: {said}). Store a valid key as "
                f"{self.key_name or 'a secret, and name it in KEY_NAME'}: on Colab or "
                "Kaggle among "
                "the secrets, elsewhere in the environment or in .env."
            )
        if status == 402 or NO_CREDIT & set(_error_codes(reply)):
            raise PermissionError(
                f"{self.url} says that there is no credit left ({status}: {said}). "
                "The answers so far are kept: add credit, then run this cell again."
            )
        if reply.is_redirect:
            where = reply.headers.get("location", "nowhere")
            raise ConnectionError(
                f"{self.url} redirects to {where}. Nothing was sent there. If you "
                "trust that address, use it instead."
            )
        if status == 404 or not self.answered:
            raise ConnectionError(
                f"{self.url} declined the request ({status}: {said}). Check the "
                f"address, the model {self.model!r} and the parameters."
            )
        print(f"one prompt is left out: the server declined it ({status}: {said})")
        return ""

    def _said(self, reply: httpx.Response) -> str:
        """Return the start of the server's text, without the key."""
        text = " ".join(reply.text.split())
        return hub.scrub(text, self._key)[:160] or "no text"

    def _gave_up(self, attempt: int, error: _TryAgainError) -> str:
        waits = f"; it asks to wait {error.wait:,.0f} s" if error.wait else ""
        return (
            f"{self.url} failed {attempt} times (the last time: {error}{waits}). The "
            "answers so far are kept: run this cell again later to continue."
        )


def _error_codes(reply: httpx.Response) -> list[str]:
    """Return the code and type in a server's error, if it has any."""
    try:
        error = reply.json()["error"]
        return [str(error.get("code")), str(error.get("type"))]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _asked_wait(reply: httpx.Response) -> float:
    """Return the seconds in Retry-After, which holds a number or a date."""
    value = reply.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(datetime.timezone.utc)
    zone = until.tzinfo or datetime.timezone.utc
    return max(0.0, (until.replace(tzinfo=zone) - now).total_seconds())
