"""A stand-in for the Hub on this machine, and processes in which no token is known.

huggingface_hub reads its settings when it is imported, so whatever asks the server runs
in a fresh interpreter. The server speaks the part of the Hub's protocol that decides
who may read: the status, `X-Error-Code` and `X-Error-Message`.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
GRANTED = "hf_GrantedGrantedGrantedGrantedGranted1"
PLAIN = "hf_PlainPlainPlainPlainPlainPlainPlain2"
WRONG = "hf_WrongWrongWrongWrongWrongWrongWrong3"
TOKENS = (GRANTED, PLAIN, WRONG)
SETTINGS = "https://huggingface.co/settings/tokens"
MINE = ("HF_", "HUGGING", "huggingface", "COLAB", "KAGGLE", "CI", "HEADLESS")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for public, gated, missing and failing repositories."""

    hiccups: ClassVar = {"hiccup/limit": 429, "hiccup/error": 500, "hiccup/busy": 503}
    seen: ClassVar[dict[str, int]] = {}

    def answer(self, status: int, code: str = "", message: str = "", body: bytes = b""):
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(name, value)
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        parts = self.path.removeprefix("/api/models/").strip("/").split("/")
        repo = "/".join(parts[:2])
        if repo == "echo/token":  # a server that repeats the token in its message
            self.answer(403, message=f"forbidden for {token}")
        elif repo == "bad/gateway":
            self.answer(502)
        elif repo == "too/many":
            self.answer(429)
        elif repo in self.hiccups:  # it fails twice, then it works
            self.seen[repo] = self.seen.get(repo, 0) + 1
            if self.seen[repo] <= 2:
                self.answer(self.hiccups[repo])
            else:
                self.answer(200, body=b'{"model_type": "llama"}')
        elif repo == "never/answers":
            time.sleep(30)
        elif repo == "network/login":  # a captive portal
            page = b"<html>Please log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(page)
        elif repo == "network/loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif token and token not in (GRANTED, PLAIN):
            self.answer(401, message="Invalid credentials in Authorization header")
        elif repo == "mine/readonly":
            self.answer(403, message="you need the right to write")
        elif repo == "some/gated" and token != GRANTED:
            self.answer(403 if token else 401, "GatedRepo", "Access is restricted")
        elif repo in ("some/gated", "some/public"):
            body = b'{"model_type": "llama", "num_hidden_layers": 1}'
            if "resolve" in parts and parts[-1] != "config.json":
                self.answer(404, "EntryNotFound", "Entry not found")
            elif "resolve" in parts and "main" not in parts:
                self.answer(404, "RevisionNotFound", "Invalid rev id")
            else:
                self.answer(200, body=body)
        else:
            self.answer(404 if token else 401, "RepoNotFound", "Repository not found")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server on this machine, and return its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_without_token(
    command: list[str], folder: Path, *path: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in `folder`, where no token is known."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(MINE)}
    search = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, *command],
        env=clean | {"PYTHONPATH": search, "HF_HOME": str(folder / "hf")} | env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
