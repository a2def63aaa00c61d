"""Call Google's Colab CLI, and turn its answers into values and clear sentences.

The CLI is the program `colab` of the package google-colab-cli. Each call is a process.
The CLI remembers a session in the file that `--config` names. There is one such file
for each run, so that a runtime can be ended even if the CLI forgets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "T4 "  # begins the one line that our code prints in the runtime
LOG_IN = "log in once: run `{program} sessions`, open the link, paste the code"


class ColabError(Exception):
    """What stopped the run, and what to do next, in one sentence or two."""


class LoginError(ColabError):
    """The CLI is not logged in, or Google rejects the login."""


class CutError(ColabError):
    """The connection broke; another try may succeed."""


class SessionEndedError(ColabError):
    """The runtime is gone, with everything that was not brought back."""


# What the CLI prints (0.7.5), and what it means. The first match counts.
Rule = tuple[str, type[ColabError], str]
RULES: tuple[Rule, ...] = (
    (
        r"EOFError|Enter the authorization code|No valid default credentials"
        r"|DefaultCredentialsError",
        LoginError,
        "The Colab CLI is not logged in. Next: " + LOG_IN + ".",
    ),
    (
        r"invalid_grant|InvalidGrantError|RefreshError|: Unauthorized$",
        LoginError,
        "Google rejects the login of the Colab CLI ({line}). Next: delete "
        "~/.config/colab-cli/token.json, then " + LOG_IN + ".",
    ),
    (
        r": Forbidden$",
        LoginError,
        "Google denies access to Colab ({line}). Next: " + LOG_IN + ", and allow all "
        "that the page asks for.",
    ),
    (
        r"Allocation refused",
        ColabError,
        "Colab gives no T4 now: a usage limit, no free GPU, or too many runtimes. "
        "Next: end other runtimes (Colab: Runtime > Manage sessions), or try again in "
        "some hours.",
    ),
    (
        r"Backend rejected accelerator",
        ColabError,
        "Colab refuses a T4 to this account: the quota is used up, or it has none. "
        "Next: try again tomorrow, or with another account.",
    ),
    (
        r"/tun/m/assign.*: (Service Unavailable|Bad Gateway|Gateway Time-?out)",
        ColabError,
        "Colab has no free T4 now ({line}). Next: try again in an hour.",
    ),
    (
        r"Session '\S+' not found|appears to be lost"
        r"|Client Error: (Unauthorized|Not Found) for url"
        r"|load failed: File or directory not found",
        SessionEndedError,
        "Colab has ended the runtime (idle for too long, time limit, or quota).",
    ),
    (
        r"Connection|Timeout|timed out|Max retries|Temporary failure|WebSocket|SSLError"
        r"|Server Error|Service Unavailable|Bad Gateway|RemoteDisconnected"
        r"|Network is unreachable",
        CutError,
        "The connection to Colab broke ({line}). Next: check the network, then try "
        "again.",
    ),
)


def explain(output: str, program: str) -> ColabError:
    """Return the error that the CLI's output stands for."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # An address may hold the runtime's token.
    last = re.sub(r"\?\S*", "", (lines or ["it printed nothing"])[-1])[:300]
    for pattern, kind, sentence in RULES:
        if re.search(pattern, output, re.MULTILINE):
            return kind(sentence.format(program=program, line=last))
    return ColabError(f"The Colab CLI failed: {last}")


class Colab:
    """One runtime, called `name`, through the program `program`."""

    def __init__(self, program: str, name: str, folder: Path) -> None:
        self.program, self.name = program, name
        self.config = folder / f"{name}.json"
        self.kept = folder / f"{name}.kept"  # a copy that the CLI does not change

    def call(
        self, *arguments: str, code: str | None = None, limit: float = 120
    ) -> tuple[str, str]:
        """Run a command of the CLI; returns its standard output and its errors.

        A Ctrl-C waits for the command, since a half-made runtime would go on unseen.
        Raises the error that `explain` finds if the command fails, and CutError after
        `limit` seconds.
        """
        command = [self.program, "--config", str(self.config), *arguments]
        environment = {
            **os.environ,
            "TYPER_STANDARD_TRACEBACK": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        try:
            out, errors = process.communicate(code or "", limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise CutError(
                f"`colab {arguments[0]}` did not answer in {limit:.0f} s."
            ) from None
        except KeyboardInterrupt:
            if arguments[0] != "new":
                process.kill()
            process.communicate(timeout=limit)
            raise
        if process.returncode:
            raise explain(f"{out}\n{errors}", self.program)
        return out, errors

    def log_in(self) -> None:
        """Check the login, or let a person log in at the terminal.

        Raises LoginError if nobody can, or if Google rejects the login.
        """
        try:
            _, errors = self.call("sessions")
        except LoginError:
            if not sys.stdin.isatty():
                raise
            subprocess.run([self.program, "--config", str(self.config), "sessions"])
            _, errors = self.call("sessions")
        if "No valid default credentials" in errors:  # the CLI goes on after that
            raise explain(errors, self.program)

    def new(self) -> None:
        """Rent a runtime with a T4.

        Raises ColabError if there is none; the CLI itself tries for some minutes.
        """
        try:
            self.call("new", "-s", self.name, "--gpu", "T4", limit=900)
        except CutError as error:
            raise ColabError(
                f"{error} Colab may have started a runtime all the same: look at "
                "Runtime > Manage sessions there."
            ) from error
        finally:
            if self.config.exists():
                shutil.copy(self.config, self.kept)

    def run(self, code: str) -> dict[str, Any]:
        """Run code in the runtime's kernel; returns what it printed after MARK.

        The CLI's status is 0 also when the code fails, so a missing line is an error.
        """
        out, errors = self.session_call(
            lambda: self.call("exec", "-s", self.name, "--timeout", "60", code=code)
        )
        for line in out.splitlines():
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise explain(f"{out}\n{errors}", self.program)

    def upload(self, path: Path, to: str) -> None:
        """Copy a local file into the runtime."""
        arguments = ("upload", "-s", self.name, str(path), to)
        self.session_call(lambda: self.call(*arguments, limit=600))

    def download(self, path: str, to: Path) -> None:
        """Copy a file of the runtime to this machine."""
        arguments = ("download", "-s", self.name, path, str(to))
        self.session_call(lambda: self.call(*arguments, limit=600))

    def session_call(self, call: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """Make a call; if the CLI believes that the runtime is gone, ask Colab.

        The CLI forgets a runtime after any 401 or 404. Raises CutError if Colab still
        lists it.
        """
        try:
            return call()
        except SessionEndedError as error:
            shutil.copy(self.kept, self.config)
            if not self.listed():
                raise
            raise CutError("The connection to the runtime broke.") from error

    def listed(self) -> bool:
        """Return whether Colab lists this runtime."""
        endpoint = json.loads(self.kept.read_text())[self.name]["endpoint"]
        return endpoint in self.call("sessions")[0]

    def stop(self) -> None:
        """End the runtime, also one that the CLI has forgotten.

        Raises the last error, with what to do, if three tries fail.
        """
        if not self.kept.exists():
            self.forget()
            return
        problem: object = "Colab still lists it."
        for pause in (0, 5, 15):
            time.sleep(pause)
            shutil.copy(self.kept, self.config)
            try:
                # It fails for a runtime that is gone, so Colab's list decides.
                with contextlib.suppress(ColabError):
                    self.call("stop", "-s", self.name)
                if not self.listed():
                    self.forget()
                    return
            except ColabError as error:
                problem = error
        command = f"{self.program} --config {self.kept} stop -s {self.name}"
        raise ColabError(
            f"The runtime {self.name} could not be ended, and may use your quota for "
            f"hours. {problem} End it: `{command}`, or in Colab: Runtime > Manage "
            "sessions."
        )

    def forget(self) -> None:
        """Remove the files that remember this runtime."""
        for path in self.config.parent.glob(f"{self.name}.*"):
            path.unlink()
