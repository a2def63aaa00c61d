"""The Hugging Face Hub: find a token, explain an error, write a card, and push.

Read in this order: `tokens` finds the user's token, or the key of another service, and
keeps it out of every text; `errors` turns the Hub's errors into sentences that say what
to do next; `cards` writes the README.md of a dataset or model and uploads the folder.
"""

from colab_utils.hub.cards import Trained, add_section, push, write_card, write_trained
from colab_utils.hub.errors import can_read, explain, hub_errors
from colab_utils.hub.tokens import scrub, secret, token

__all__ = [
    "Trained",
    "add_section",
    "can_read",
    "explain",
    "hub_errors",
    "push",
    "scrub",
    "secret",
    "token",
    "write_card",
    "write_trained",
]
