"""A stand-in for Google's Colab CLI, for tests: the "runtime" is a folder here.

Answers the commands that tools.t4_colab uses with the words of google-colab-cli 0.7.5.
FAKE_COLAB names a folder. Its plan.json says which calls go wrong: for each command a
list, one entry a call, null for a call that works. calls.jsonl records the arguments of
each call, endpoint the runtime that is rented. `exec` runs the code in a new Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_COLAB"])
ENDPOINT = HOME / "endpoint"
REFUSED = "Traceback (most recent call last):\ncolab_cli.client.ColabRequestError: "
REFUSED += "Failed to issue request {} https://colab.research.google.com/tun/m/{}: {}"
# status, standard output, standard error
ANSWERS = {
    "no login": (1, "", "Traceback (most recent call last):\nEOFError: EOF when read"),
    "bad login": (1, "", REFUSED.format("GET", "assignments", "Unauthorized")),
    "bad code": (1, "", "oauthlib.oauth2...InvalidGrantError: (invalid_grant) Bad"),
    "denied": (1, "", REFUSED.format("GET", "assignments", "Forbidden")),
    "no credentials": (0, "No active sessions", "No valid default credentials found."),
    "refused": (1, "", "[colab] Allocation refused (precondition failed). This can"),
    "no quota": (1, "", "[colab] Backend rejected accelerator 'T4'. You may not have"),
    "no gpu": (1, "", REFUSED.format("POST", "assign?nbh=1", "Service Unavailable")),
    "cut": (1, "", "requests.exceptions.ConnectionError: ('Connection aborted.',)"),
    "silent": (1, "", "TimeoutError: Timeout waiting for output"),
    "expired": (
        1,
        "[colab] Upload failed: 401 Client Error: Unauthorized for url: x",
        "",
    ),
    "lost": (1, "[colab] Session 't4' appears to be lost (404/401). Cleaning up.", ""),
    "odd": (0, "", "ZeroDivisionError: division by zero"),
    "half": (0, "", ""),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sessions")
    for name in ("new", "exec", "upload", "download", "stop"):
        sub = commands.add_parser(name)
        sub.add_argument("-s", dest="session", required=True)
        if name == "new":
            sub.add_argument("--gpu", choices=["T4"])
        if name == "exec":
            sub.add_argument("--timeout", type=float)
        if name in ("upload", "download"):
            sub.add_argument("source", type=Path)
            sub.add_argument("target", type=Path)
    return parser.parse_args(arguments)


def planned(command: str) -> str | None:
    """Take the next entry of plan.json for this command."""
    path = HOME / "plan.json"
    plan = json.loads(path.read_text()) if path.exists() else {}
    entries = plan.get(command, [])
    answer = entries.pop(0) if entries else None
    path.write_text(json.dumps(plan))
    return answer


def work(options: argparse.Namespace) -> int:
    """Do what a command does when nothing goes wrong."""
    remembered = options.config.exists() and json.loads(options.config.read_text())
    if options.command == "sessions":
        rented = ENDPOINT.read_text() if ENDPOINT.exists() else ""
        name = next(iter(remembered), "?") if remembered else "?"
        print(f"[{name}] {rented} | Hardware: T4" if rented else "[colab] No active")
    elif options.command == "new":
        ENDPOINT.write_text(f"m-s-{time.time_ns()}")
        state = {options.session: {"endpoint": ENDPOINT.read_text()}}
        options.config.write_text(json.dumps(state))
        print("[colab] Session READY.")
    elif options.command == "stop":
        if not remembered:
            print(f"[colab] Session '{options.session}' not found.")
            return 0
        ours = remembered[options.session]["endpoint"]
        if not ENDPOINT.exists() or ENDPOINT.read_text() != ours:
            print(REFUSED.format("GET", "unassign", "Not Found"), file=sys.stderr)
            return 1
        ENDPOINT.unlink()
        options.config.unlink()
        print("[colab] Session terminated.")
    elif not (remembered and ENDPOINT.exists()):
        print(f"[colab] Session '{options.session}' not found.")
        return 1
    elif options.command == "exec":
        subprocess.run([sys.executable, "-"], input=sys.stdin.read(), text=True)
    elif not options.source.exists():
        print(f"[colab] {options.command.title()} failed: File or directory not found")
        return 1
    else:
        shutil.copy(options.source, options.target)
    return 0


def main() -> int:
    options = parse(sys.argv[1:])
    with (HOME / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    answer = planned(options.command)
    if answer == "hang":
        time.sleep(60)
    if answer == "late":  # it is done, but the answer does not arrive
        work(options)
        answer = "cut"
    if answer == "emptied":  # the runtime is replaced just before this download
        options.source.parents[1].rename(options.source.parents[1].with_name("gone"))
    if answer == "interrupt":  # Ctrl-C during the call; Colab has rented it already
        if options.command == "new":
            ENDPOINT.write_text("m-s-0")
        os.kill(os.getppid(), 2)
        time.sleep(0.5)
    if answer in ("lost", "ended", "replaced"):
        options.config.unlink()  # as the real one does after any 401 or 404
    if answer == "ended":
        ENDPOINT.unlink()
    if answer == "replaced":
        ENDPOINT.write_text("m-s-another")
    answer = "lost" if answer in ("ended", "replaced") else answer
    if answer in ANSWERS:
        status, out, errors = ANSWERS[answer]
        print(out)
        print(errors, file=sys.stderr)
        if answer == "half" and options.command == "download":
            options.target.write_bytes(b"half of a file")
        return status
    return work(options)


if __name__ == "__main__":
    sys.exit(main())
