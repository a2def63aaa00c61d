"""The notebooks' widgets: a chat box and a memory planner, for ipywidgets 7 and 8.

Read `conversation` (the turns, no widgets), `chat_layout` (the widgets), `chat` (their
behavior) and `planner`. In a headless run the `show_` functions print text instead.
"""

from colab_utils.widgets.chat import ChatBox, show_chat
from colab_utils.widgets.conversation import Chat
from colab_utils.widgets.planner import show_planner

__all__ = ["Chat", "ChatBox", "show_chat", "show_planner"]
