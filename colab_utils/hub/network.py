"""How long an answer of the Hub may take, and when the Hub is asked again."""

from __future__ import annotations

import time
from typing import Any

import httpx
from huggingface_hub import get_session, set_client_factory

# Without a limit of its own, a request of huggingface_hub waits for ever.
LIMIT = httpx.Timeout(60.0, connect=10.0)
UPLOAD = httpx.Timeout(300.0, connect=10.0)  # the Hub checks the files of a commit
AGAIN = (429, 500, 502, 503, 504)  # answers that may be better in a moment
PAUSES = (1.0, 2.0)  # seconds before the second and the third try
LONGEST = 60.0  # seconds that we wait if the Hub asks for more time


class PatientClient(httpx.Client):
    """A client whose requests end, and that asks again after a failure of the Hub."""

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request; if it only reads, up to three times.

        Raises httpx.TimeoutException if no answer comes in time.
        """
        reads = request.method in ("GET", "HEAD")
        limits = request.extensions.get("timeout") or {}
        if not any(limits.values()):
            limit = LIMIT if reads else UPLOAD
            request.extensions["timeout"] = limit.as_dict()
        for pause in PAUSES if reads else ():
            response = super().send(request, **options)
            wait = max(pause, asked_for(response))
            if response.status_code not in AGAIN or wait > LONGEST:
                return response
            response.close()
            print(f"The Hub answered {response.status_code}: again in {wait:g} s")
            time.sleep(wait)
        return super().send(request, **options)


def asked_for(response: httpx.Response) -> float:
    """Return the seconds in Retry-After; 0 without one, or if it holds a date."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def be_patient() -> None:
    """Let huggingface_hub, and the libraries that use it, ask with a PatientClient."""
    if isinstance(get_session(), PatientClient):
        return
    hooks = get_session().event_hooks  # those of huggingface_hub stay

    def make() -> httpx.Client:
        return PatientClient(event_hooks=hooks, follow_redirects=True, timeout=LIMIT)

    set_client_factory(make)
