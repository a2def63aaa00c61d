"""Explain the Hub's errors in a sentence that says what to do next."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colab_utils import runtime
from colab_utils.hub.tokens import MAKE, STORE, scrub

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return `error` and all errors that caused it, the outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@dataclass(frozen=True)
class _Failure:
    """A failed access to the Hub, with the properties that the rules below check."""

    causes: list[BaseException]
    repo_id: str
    token_given: bool

    def has(self, *types: type[BaseException]) -> bool:
        """Return whether the error, or one of its causes, is of one of these types."""
        return any(isinstance(error, types) for error in self.causes)

    @property
    def response(self) -> HfHubHTTPError | None:
        """The Hub's answer, if there was one."""
        from huggingface_hub.errors import HfHubHTTPError

        return next((e for e in self.causes if isinstance(e, HfHubHTTPError)), None)

    @property
    def status(self) -> int:
        """The HTTP status of the Hub's answer; 0 if there was none."""
        return self.response.response.status_code if self.response else 0

    @property
    def page(self) -> str:
        """The repository's page on the Hub."""
        url = str(self.response.response.url) if self.response else ""
        kind = "datasets/" if "/datasets/" in url else ""
        return f"https://huggingface.co/{kind}{self.repo_id}"


def _network() -> str:
    if runtime.on_kaggle():
        return "Switch Settings > Internet on (it needs a verified phone number)"
    return "Check the network"


# A function that returns whether the rule applies, the built-in error, the sentence.
_Rule = tuple[Callable[[_Failure], bool], type[OSError], str]


def _rules() -> list[_Rule]:
    """Return the rules that explain a failure; the first that applies decides."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    def token_unsendable(failure: _Failure) -> bool:
        unsent = (httpx.LocalProtocolError, UnicodeEncodeError)
        first = next((e for e in failure.causes if isinstance(e, unsent)), None)
        header = f"{first}{getattr(first, 'object', '')}" if first else ""
        return failure.token_given and "Bearer" in header

    def page_instead(failure: _Failure) -> bool:
        parsed = (e for e in failure.causes if isinstance(e, json.JSONDecodeError))
        return any(error.doc.lstrip().startswith("<") for error in parsed)

    absent = hub.LocalEntryNotFoundError
    return [
        (
            lambda f: (
                f.has(hub.OfflineModeIsEnabled)
                or (constants.HF_HUB_OFFLINE and f.has(absent))
            ),
            ConnectionError,
            "{repo} is not on this machine, and HF_HUB_OFFLINE forbids downloading it. "
            "Unset HF_HUB_OFFLINE, or use a model that is on this machine.",
        ),
        (
            token_unsendable,
            PermissionError,
            "The token contains characters that no token has. "
            f"Next: {MAKE} and copy it whole.",
        ),
        (
            lambda f: f.token_given and f.status == 401,
            PermissionError,
            "The Hub rejected the token: it is wrong, expired or revoked. "
            f"Next: {MAKE} and replace the old one ({STORE}).",
        ),
        (
            lambda f: f.has(hub.GatedRepoError) and f.status == 401,
            PermissionError,
            "{repo} is gated, and no token was given. Accept its license at {page}, "
            f"then {MAKE}; {STORE}.",
        ),
        (
            lambda f: f.has(hub.GatedRepoError),
            PermissionError,
            "The token works, but its owner has no access to {repo} yet. Accept the "
            "license at {page} (a grant may take hours). A fine-grained token also "
            "needs the permission to read public gated repositories.",
        ),
        (
            lambda f: f.has(hub.RepositoryNotFoundError) and f.token_given,
            FileNotFoundError,
            "{repo} does not exist on the Hub, or is private and not open to this "
            "token's owner. Check the spelling: {page}",
        ),
        (
            lambda f: f.has(hub.RepositoryNotFoundError),
            FileNotFoundError,
            "{repo} does not exist on the Hub, or is private and needs a token, and "
            f"none was given ({MAKE}). Check the spelling: {{page}}",
        ),
        (
            lambda f: f.has(hub.RevisionNotFoundError),
            FileNotFoundError,
            "{repo} has no such revision: see {page}/tree/main",
        ),
        (
            lambda f: f.has(hub.RemoteEntryNotFoundError),
            FileNotFoundError,
            "{repo} has no such file: see {page}/tree/main",
        ),
        (
            lambda f: f.status == 401,
            PermissionError,
            f"{{repo}} needs a token: {MAKE}; {STORE}.",
        ),
        (
            lambda f: f.status == 403,
            PermissionError,
            "The Hub denied access to {repo}: publishing needs a token with the role "
            f"`write`, of an account that owns the name. Next: {MAKE}; {STORE}.",
        ),
        (
            lambda f: f.status == 429,
            ConnectionError,
            "The Hub answered 429 (too many requests) for {repo}. Try again in a "
            "minute.",
        ),
        (
            lambda f: f.status >= 500,
            ConnectionError,
            "The Hub answered {status} (a server error) for {repo}. Try again in a "
            "minute.",
        ),
        (
            lambda f: (
                page_instead(f) or f.has(httpx.TooManyRedirects, hub.FileMetadataError)
            ),
            ConnectionError,
            "Another page came instead of the Hub's answer for {repo}: the network may "
            "want a login, or a proxy is in between. Open any page in a browser, log "
            "in there, then run the cell again.",
        ),
        (
            lambda f: f.has(absent),
            ConnectionError,
            "The Hub was not reached, and {repo} is not on this machine yet. "
            f"{_network()}, then run the cell again.",
        ),
        (
            lambda f: f.has(httpx.TransportError, ConnectionError),
            ConnectionError,
            f"The Hub was not reached. {_network()}, then run the cell again.",
        ),
        (
            lambda f: f.has(hub.HFValidationError),
            FileNotFoundError,
            "{repo!r} is neither a folder here nor a name on the Hub, which looks like "
            "`owner/name`.",
        ),
    ]


def _explanation(
    error: BaseException, repo_id: str, token_given: bool
) -> tuple[type[OSError], str] | None:
    """Return the meaning of a Hub error: a built-in error type and a sentence."""
    failure = _Failure(_chain(error), repo_id, token_given)
    for applies, kind, text in _rules():
        if applies(failure):
            return kind, text.format(
                repo=repo_id, page=failure.page, status=failure.status
            )
    return None


def explain(error: BaseException, repo_id: str, token_given: bool) -> str:
    """Return the meaning of an error of huggingface_hub or transformers in a sentence.

    The sentence says what to do next, and contains no token.
    """
    known = _explanation(error, repo_id, token_given)
    text = known[1] if known else f"{type(error).__name__}: {error}"
    return scrub(text, None)


def _hub_types() -> tuple[type[BaseException], ...]:
    """Return the errors that an access to the Hub may raise (transformers: OSError)."""
    import httpx
    from huggingface_hub.errors import HFValidationError

    sent = (httpx.HTTPError, UnicodeEncodeError, json.JSONDecodeError)
    return OSError, HFValidationError, *sent


def can_read(repo_id: str, token: str | None) -> bool:
    """Return whether the token gives access to a model; if not, print the reason."""
    from huggingface_hub import constants, utils

    from colab_utils.hub.network import be_patient

    be_patient()
    try:
        utils.validate_repo_id(repo_id)
        # Not `auth_check`: it has no timeout, and waits forever if packets are lost.
        answer = utils.get_session().get(
            f"{constants.ENDPOINT}/api/models/{repo_id}/auth-check",
            headers=utils.build_hf_headers(token=token or False),
            timeout=10,
        )
        utils.hf_raise_for_status(answer)
    except _hub_types() as error:
        print(scrub(" ".join(explain(error, repo_id, bool(token)).split()), token))
        return False
    return True


@contextlib.contextmanager
def hub_errors(repo_id: str, token: str | None, before: str = "") -> Iterator[None]:
    """Turn the Hub's errors into built-in ones that say what to do next.

    Raises PermissionError (no token, a wrong one, or no license), FileNotFoundError (no
    such repository or file) or ConnectionError. Every message begins with the text
    `before`. Other errors pass unchanged; with a text `before`, or if they contain the
    token, they become an OSError. No message contains the token. In the block, a
    request ends in time, and is repeated if the Hub fails (`network.PatientClient`).
    """
    from colab_utils.hub.network import be_patient

    be_patient()
    types: tuple[type[BaseException], ...] = _hub_types()
    if before:  # an upload's threads raise RuntimeError; the reason is among its causes
        types = (*types, RuntimeError)
    try:
        yield
    except types as error:
        leaks = any(scrub(str(e), token) != str(e) for e in _chain(error))
        known = _explanation(error, repo_id, bool(token))
        if known is None and not leaks and not before:
            raise
        kind, text = known or (OSError, f"{type(error).__name__}: {error}")
        # The traceback also shows the original error, unless it contains the token.
        raise kind(scrub(before + text, token)) from (None if leaks else error)
