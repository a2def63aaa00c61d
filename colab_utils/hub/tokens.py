"""The Hugging Face token: where it is found, and what the hub's refusals mean."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from colab_utils import runtime

NAMES = ("HF_TOKEN", "huggingface")
MAKE = "make a token at https://huggingface.co/settings/tokens"
STORE = "on Colab store it as the secret `huggingface`, elsewhere as HF_TOKEN in .env"

NO_ANSWER = "Colab's secrets did not answer: they work in the Colab page only"

_told: set[str] = set()


def _tell(line: str) -> None:
    """Print a line the first time in a process: several modules ask for the token."""
    if line not in _told:
        _told.add(line)
        print(line)


class _Token(str):
    """A token that a cell's output and a traceback's variables do not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'hf_***'"


def scrub(text: str, token: str | None) -> str:
    """`text` without `token`, and without anything else that looks like a token."""
    token = _clean(token)
    clean = text.replace(token, "***") if token else text
    clean = re.sub(r"hf_(?:[a-z]+_)?[A-Za-z0-9]{20,}", "hf_***", clean)
    # A token that is a piece of its own replacement: show nothing rather than it.
    return "" if token and token in clean else clean


def _clean(value: str | None) -> str:
    """`value` without the spaces, line ends and quotes that copying adds."""
    return (value or "").strip().strip("\"'").strip()


def _from_colab() -> tuple[str, str] | None:
    try:
        from google.colab import errors, userdata
    except ImportError:
        _tell("Colab's secrets cannot be read here: google.colab.userdata is missing")
        return None
    if NO_ANSWER in _told:  # each try would wait ten seconds
        return None
    timeout = getattr(userdata, "TimeoutException", ())  # absent in older images
    for name in reversed(NAMES):
        try:
            value = _clean(userdata.get(name))
        except userdata.SecretNotFoundError:
            continue
        except userdata.NotebookAccessError:
            _tell(
                f"Colab's secret `{name}` is closed to this notebook: click the key in "
                "the left bar and switch its 'Notebook access' on"
            )
            continue
        except timeout:
            _tell(NO_ANSWER)
            return None
        except errors.Error as error:
            _tell(f"Colab's secret `{name}` cannot be read: {type(error).__name__}")
            continue
        if value:
            return value, f"Colab's secret `{name}`"
    return None


def _from_dotenv() -> tuple[str, str] | None:
    from dotenv import dotenv_values

    here, root = Path.cwd(), runtime.project_root()
    folders = [here, *here.parents]
    for folder in folders[: folders.index(root) + 1 if root else 1]:
        path = folder / ".env"
        if not path.is_file():
            continue
        try:
            values = dotenv_values(path, interpolate=False)
        except (OSError, UnicodeDecodeError) as error:
            _tell(f"{path} is left out: it cannot be read ({type(error).__name__})")
            continue
        for name in NAMES:
            if value := _clean(values.get(name)):
                return value, f"{name} in {path}"
    return None


def _from_login() -> tuple[str, str] | None:
    from huggingface_hub import constants, get_token

    path = Path(constants.HF_TOKEN_PATH)
    try:
        value = _clean(path.read_text(errors="replace")) if path.is_file() else ""
    except OSError as error:
        _tell(f"{path} is left out: it cannot be read ({type(error).__name__})")
        return None
    # get_token() renews the token of a browser login, but it answers from the
    # environment first, and without a login it would ask Colab's secrets.
    others = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
    if value and not any(os.environ.get(name) for name in others):
        value = _clean(get_token())
    return (value, "the login kept by `hf auth login`") if value else None


def _candidates() -> Iterator[tuple[str, str]]:
    """Each token that can be found, and where, in the order of preference."""
    for name in NAMES:
        if value := _clean(os.environ.get(name)):
            yield value, f"the environment variable {name}"
    sources = [_from_dotenv, _from_login]
    if runtime.on_colab() and not runtime.headless():
        sources.insert(0, _from_colab)
    for source in sources:
        if found := source():
            yield found


def token() -> str | None:
    """The reader's Hugging Face token or None; one line says where it was found.

    Looked for in the environment (HF_TOKEN, huggingface), Colab's secrets (huggingface,
    HF_TOKEN; not when nobody watches), `.env` and the login of `hf auth login`. It is
    never printed.
    """
    for value, source in _candidates():
        if not (value.isascii() and value.isprintable()) or " " in value:
            _tell(f"{source} is left out: a token has no spaces and no special signs")
            continue
        odd = "" if value.startswith("hf_") else ', though it does not begin with "hf_"'
        _tell(f"Hugging Face token: {source}{odd}")
        return _Token(value)
    _tell(f"Hugging Face token: none; public models need none (else {MAKE}; {STORE})")
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    """`error` and all that caused it, the outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _hub_types() -> tuple[type[BaseException], ...]:
    """What an access to the hub may raise; transformers raises OSError."""
    import httpx
    from huggingface_hub.errors import HFValidationError

    return OSError, httpx.HTTPError, HFValidationError, UnicodeEncodeError


def _refusal(
    error: BaseException, repo_id: str, given: bool
) -> tuple[type[OSError], str] | None:
    """What an error of the hub means, as a built-in error type and a sentence."""
    import httpx
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    def find(*types: type[BaseException]) -> BaseException | None:
        return next((e for e in _chain(error) if isinstance(e, types)), None)

    refused = find(hub.HfHubHTTPError)
    status = refused.response.status_code if refused else 0
    url = str(refused.response.url) if refused else ""
    kind = "datasets/" if "/datasets/" in url else ""
    page = f"https://huggingface.co/{kind}{repo_id}"
    absent = find(hub.LocalEntryNotFoundError)
    if find(hub.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and absent):
        return ConnectionError, (
            f"{repo_id} is not on this machine, and HF_HUB_OFFLINE forbids to fetch "
            "it. Unset HF_HUB_OFFLINE, or use a model that is here."
        )
    # The header with the token could not even be written.
    unsent = find(httpx.LocalProtocolError, UnicodeEncodeError)
    if given and unsent and "Bearer" in f"{unsent}{getattr(unsent, 'object', '')}":
        return PermissionError, (
            f"The token holds signs that no token has. Next: {MAKE} and copy it whole."
        )
    if given and status == 401:
        return PermissionError, (
            f"The hub refused the token: it is wrong, expired or revoked. Next: {MAKE} "
            f"and replace the old one ({STORE})."
        )
    if find(hub.GatedRepoError):
        if status == 401:
            return PermissionError, (
                f"{repo_id} is gated, and no token was given. Accept its licence at "
                f"{page}, then {MAKE}; {STORE}."
            )
        return PermissionError, (
            f"The token works, but its owner has no access to {repo_id} yet. Accept "
            f"the licence at {page} (a grant may take hours). A fine-grained token "
            "also needs the permission to read public gated repositories."
        )
    if find(hub.RepositoryNotFoundError):
        if given:
            reason = "or is private and not open to this token's owner"
        else:
            reason = f"or is private and needs a token, and none was given ({MAKE})"
        return FileNotFoundError, (
            f"{repo_id} does not exist on the hub, {reason}. Check the spelling: {page}"
        )
    if find(hub.RevisionNotFoundError):
        return (
            FileNotFoundError,
            f"{repo_id} has no such revision: see {page}/tree/main",
        )
    if find(hub.RemoteEntryNotFoundError):
        return FileNotFoundError, f"{repo_id} has no such file: see {page}/tree/main"
    if status == 401:
        return PermissionError, f"{repo_id} needs a token: {MAKE}; {STORE}."
    if status == 403:
        return PermissionError, (
            f"This token may not do that with {repo_id}: publishing needs one of the "
            f"role `write`, in an account that owns the name. Next: {MAKE}; {STORE}."
        )
    if status == 429 or status >= 500:
        busy = "too many requests" if status == 429 else "trouble on its side"
        return ConnectionError, (
            f"The hub answered {status} ({busy}) for {repo_id}. Try again in a minute."
        )
    if absent or find(httpx.TransportError, ConnectionError):
        missing = f", and {repo_id} is not on this machine yet" if absent else ""
        return ConnectionError, (
            f"The hub was not reached{missing}. Check the network, then run the cell "
            "again."
        )
    if find(hub.HFValidationError):
        return FileNotFoundError, (
            f"{repo_id!r} is neither a folder here nor a name on the hub, which looks "
            "like `owner/name`."
        )
    return None


def explain(error: BaseException, repo_id: str, token_given: bool) -> str:
    """What an error of huggingface_hub or transformers means, and what to do next."""
    refusal = _refusal(error, repo_id, token_given)
    text = refusal[1] if refusal else f"{type(error).__name__}: {error}"
    return scrub(text, None)


def can_read(repo_id: str, token: str | None) -> bool:
    """Whether the hub lets this token read a model; if not, one line says why."""
    from huggingface_hub import constants, utils

    try:
        utils.validate_repo_id(repo_id)
        # Not `auth_check`: that one waits for ever where packets are dropped.
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
    """Turn what the hub refuses into a built-in error with a sentence for the reader.

    Raises PermissionError (no token, a wrong one, or no licence), FileNotFoundError (no
    such repository or file) or ConnectionError; other errors pass, or become an OSError
    where a text is to stand `before` each message. No message holds the token.
    """
    # An upload's threads raise RuntimeError, for a reason that is among its causes.
    types = (*_hub_types(), RuntimeError) if before else _hub_types()
    try:
        yield
    except types as error:
        leaks = any(scrub(str(e), token) != str(e) for e in _chain(error))
        refusal = _refusal(error, repo_id, bool(token))
        if refusal is None and not leaks and not before:
            raise
        kind, text = refusal or (OSError, f"{type(error).__name__}: {error}")
        # A traceback also shows the original, unless that one holds the token.
        raise kind(scrub(before + text, token)) from (None if leaks else error)
