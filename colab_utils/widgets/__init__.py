"""The notebooks' widgets, for ipywidgets 7 and 8: talk to a model, plan its memory.

Read `conversation` (the turns, no widgets), `chat_layout` (the widgets), `chat` (their
behavior) and `planner` (sliders and a figure). In a headless run the `show_` functions
print text instead.
"""

from colab_utils.widgets.chat import ChatBox, show_chat
from colab_utils.widgets.conversation import Chat
from colab_utils.widgets.planner import show_planner

__all__ = ["Chat", "ChatBox", "show_chat", "show_planner"]
