"""A stand-in for Colab's servers on the loopback, for Google's real Colab CLI.

`Backend` answers what google-colab-cli 0.7.5 asks: renting and ending a runtime, files,
and a kernel over a websocket, which runs code in this process. `write_wrapper` writes a
program that is the real CLI, with this server in place of Colab's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
import traceback
import uuid
from pathlib import Path
from typing import Any

import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

ENDPOINT = "gpu-t4-s-1"


class Backend(threading.Thread):
    """Colab for one test. `faults` maps a place to what goes wrong there.

    Places: assignments, get, assign, unassign, kernel, contents. A fault is an HTTP
    status, or "cut", which closes the connection; it is taken from the front of its
    list by each request.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.faults: dict[str, list[Any]] = {}
        self.rented = False
        self.asked: list[str] = []  # accelerators
        self.ended = 0
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.ready = threading.Event()
        self.port = 0

    def run(self) -> None:
        """Serve until `stop`."""
        asyncio.run(self.serve())

    async def serve(self) -> None:
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        given = {"backend": self}
        kernel = r"/runtime/api/kernels/[^/]+"
        application = tornado.web.Application(
            [
                (r"/token", Token, given),
                (r"/tun/m/assignments", Assignments, given),
                (r"/tun/m/assign", Assign, given),
                (rf"/tun/m/unassign/{ENDPOINT}", Unassign, given),
                (r"/runtime/api/kernels", Kernels, given),
                (kernel, Kernels, given),
                (rf"{kernel}/channels", Channels, given),
                (r"/runtime/api/contents/(.*)", Contents, given),
            ],
            websocket_max_message_size=2**26,
        )
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server = tornado.httpserver.HTTPServer(application, max_buffer_size=2**28)
        server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.ready.set()
        await self.end.wait()
        server.stop()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.join()

    def proxy(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/runtime"
        return {"token": "proxy-token", "tokenExpiresInSeconds": 3600, "url": url}

    def assignment(self) -> dict[str, Any]:
        return {
            "accelerator": "T4",
            "endpoint": ENDPOINT,
            "variant": 1,
            "machineShape": 0,
            "runtimeProxyInfo": self.proxy(),
        }


class Handler(tornado.web.RequestHandler):
    """Knows the backend, and fails as it says."""

    place = ""

    def initialize(self, backend: Backend) -> None:
        self.backend = backend

    def prepare(self) -> None:
        faults = self.backend.faults.get(self.place, [])
        fault = faults.pop(0) if faults else None
        if fault == "cut":
            self.request.connection.stream.close()
            raise tornado.web.Finish
        if fault:
            raise tornado.web.HTTPError(fault)
        if self.place in ("kernel", "contents") and not self.backend.rented:
            raise tornado.web.HTTPError(404)

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish("")

    def answer(self, value: Any) -> None:
        """Send JSON behind the prefix that Colab puts before it."""
        self.finish(")]}'\n" + json.dumps(value))


class Token(Handler):
    """Renews no login: it was withdrawn."""

    def post(self) -> None:
        self.set_status(400)
        self.finish({"error": "invalid_grant", "error_description": "Token revoked."})


class Assignments(Handler):
    place = "assignments"

    def get(self) -> None:
        found = [self.backend.assignment()] if self.backend.rented else []
        self.answer({"assignments": found})


class Assign(Handler):
    place = "assign"

    def prepare(self) -> None:
        if self.request.method == "POST":
            super().prepare()

    def get(self) -> None:
        self.answer({"acc": "T4", "nbh": "1", "token": "xsrf", "variant": "GPU"})

    def post(self) -> None:
        assert self.request.headers["X-Goog-Colab-Token"] == "xsrf"
        self.backend.asked.append(self.get_query_argument("accelerator"))
        self.backend.rented = True
        self.answer(self.backend.assignment())


class Unassign(Handler):
    place = "unassign"

    def get(self) -> None:
        if not self.backend.rented:
            raise tornado.web.HTTPError(404)
        self.answer({"token": "xsrf"})

    def post(self) -> None:
        self.backend.rented = False
        self.backend.ended += 1
        self.answer({})


class Contents(Handler):
    place = "contents"

    def put(self, path: str) -> None:
        content = json.loads(self.request.body)["content"]
        Path("/", path).write_bytes(base64.b64decode(content))
        self.finish({"name": path})

    def get(self, path: str) -> None:
        if not Path("/", path).exists():
            raise tornado.web.HTTPError(404)
        content = base64.b64encode(Path("/", path).read_bytes()).decode()
        self.finish({"type": "file", "format": "base64", "content": content})


class Kernels(Handler):
    place = "kernel"

    def get(self) -> None:
        self.finish({"id": "kernel-1", "execution_state": "idle"})

    post = get

    def delete(self) -> None:
        self.set_status(204)
        self.finish()


class Channels(tornado.websocket.WebSocketHandler):
    """The kernel's websocket: runs each execute_request in a thread."""

    def initialize(self, backend: Backend) -> None:
        self.backend = backend

    async def on_message(self, message: str | bytes) -> None:
        request = json.loads(message)
        if request["header"]["msg_type"] != "execute_request":
            return

        def send(channel: str, kind: str, **content: Any) -> None:
            header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "s"}
            header |= {"username": "", "version": "5.3", "date": "2026-01-01T00:00:00Z"}
            answer = {"channel": channel, "header": header, "content": content}
            answer |= {"parent_header": request["header"], "metadata": {}}
            answer |= {"msg_id": header["msg_id"], "msg_type": kind, "buffers": []}
            self.write_message(json.dumps(answer))

        send("iopub", "status", execution_state="busy")
        code = request["content"]["code"]
        out, error = await asyncio.to_thread(run, code, self.backend.names)
        if out:
            send("iopub", "stream", name="stdout", text=out)
        status: dict[str, Any] = {"status": "ok", "execution_count": 1}
        if error:
            status = {"ename": "Error", "evalue": error, "traceback": [error]}
            send("iopub", "error", **status)
            status["status"] = "error"
        send("shell", "execute_reply", **status)
        send("iopub", "status", execution_state="idle")


def run(code: str, names: dict[str, Any]) -> tuple[str, str]:
    """Run a cell; returns what it prints, and its traceback."""
    if "os.chdir('/content')" in code:  # the CLI's own first cell
        return "", ""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, names)
        except Exception:
            return out.getvalue(), traceback.format_exc()
    return out.getvalue(), ""


WRAPPER = """#!{python}
import os, sys
os.environ["HOME"] = {home!r}
import google.oauth2.credentials
from colab_cli import client, common
address = "http://127.0.0.1:{port}"
google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT = address + "/token"
common.Prod = lambda: client.Prod(domain=address, api=address)
from colab_cli.cli import main
main()
"""


def write_wrapper(path: Path, python: Path, home: Path, port: int) -> None:
    """Write the real CLI as a program that talks to this server, already logged in.

    The home folder is a test's own: no login of this machine is read or changed.
    """
    folder = home / ".config" / "colab-cli"
    folder.mkdir(parents=True, exist_ok=True)
    token = {"token": "t", "refresh_token": "r", "client_id": "c", "client_secret": "s"}
    token["expiry"] = "2999-01-01T00:00:00Z"
    (folder / "token.json").write_text(json.dumps(token))
    settings = {"enable_update_check": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    path.write_text(WRAPPER.format(python=python, home=str(home), port=port))
    path.chmod(0o755)
