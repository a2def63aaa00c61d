"""A small server on loopback with OpenAI's chat completions, and its failures.

A test gives what happens to the next requests; all later ones are answered. A number is
a status, with the headers and the text that follow it. "cut" closes the connection in
the middle of an answer, a float delays one by so many seconds, a text is the answer,
and a function returns the answer to a prompt.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

Event = Any  # (status, headers, text), "cut", a float, a text, or a function


class Chat(http.server.BaseHTTPRequestHandler):
    """Answers "answer to <prompt>", unless the server's list of events says else."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        self.server.seen.append(
            {
                "path": self.path,
                "key": self.headers.get("Authorization"),
                "body": body,
                "prompt": prompt,
                "time": time.monotonic(),
            }
        )
        event = self.server.events.pop(0) if self.server.events else self.server.usual
        if isinstance(event, tuple):
            return self.send(*event)
        if event == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.close_connection = True
            return None
        if isinstance(event, float):
            time.sleep(event)
        text = event if isinstance(event, str) else f"answer to {prompt}"
        if callable(event):
            text = event(prompt)
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        choice = {"message": {"role": "assistant", "content": text}}
        return self.send(200, {}, json.dumps({"choices": [choice], "usage": usage}))

    def send(self, status: int, headers: dict[str, str], text: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have given up, or is dead
            self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """The requests that a test has `seen`, and the `events` that wait for requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Chat)
        self.events: list[Event] = []
        self.seen: list[dict[str, Any]] = []
        self.usual: Event = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
        """A client that was killed is no error of the server."""


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
