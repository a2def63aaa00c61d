"""Start an endless answer in a chat box, then let the interpreter end.

Prints "closed" to stderr when the reply is closed.
"""

import sys
import threading

import IPython.display

from colab_utils import widgets

boxes, begun = [], threading.Event()
IPython.display.display = boxes.append


def reply(messages, **settings):
    try:
        while True:
            yield "more "
            begun.set()
    finally:
        print("closed", file=sys.stderr)


widgets.show_chat(reply)
entry, send, *_ = boxes[0].children[2].children
entry.value = "Hi"
send.click()
begun.wait()
