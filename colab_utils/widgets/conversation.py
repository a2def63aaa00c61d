"""Keep a conversation with a model that streams its answers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

Messages = list[dict[str, str]]
Reply = Callable[..., Generator[str, None, None]]


class Chat:
    """A conversation: `say` adds a user turn and the model's answer.

    `reply(messages, **settings)` yields an answer piece by piece.
    """

    def __init__(self, reply: Reply, system: str = "") -> None:
        self.reply = reply
        self.messages: Messages = []
        self.system = system

    def say(
        self,
        text: str,
        show: Callable[[str], object] = lambda answer: None,
        stopped: Callable[[], bool] = lambda: False,
        **settings: object,
    ) -> str:
        """Send `text`, and return the whole answer.

        `show` is called with the answer so far after each piece. `settings` go to
        `reply`. When `stopped()` becomes true, the answer so far is kept. If it has no
        text yet, the user turn is removed and the result is "". An empty answer that
        the model ended itself is kept.
        """
        messages = self.messages  # `clear` replaces the list, perhaps during the answer
        messages.append({"role": "user", "content": text})
        system = [{"role": "system", "content": self.system}] if self.system else []
        answer, cut = "", False
        try:
            pieces = self.reply(system + messages, **settings)
            if not isinstance(pieces, Generator):
                raise TypeError(
                    f"reply returned {type(pieces).__name__}, but it must be a "
                    "generator: reply must yield the answer piece by piece."
                )
            with closing(pieces):
                for piece in pieces:
                    if cut := stopped():
                        break
                    answer += piece
                    show(answer)
        except BaseException:  # also KeyboardInterrupt: no turn without an answer
            messages.pop()
            raise
        answer = answer.strip()
        if cut and not answer:
            messages.pop()
            return ""
        messages.append({"role": "assistant", "content": answer})
        return answer

    def clear(self) -> None:
        """Remove all turns."""
        self.messages = []
