"""A stand-in for Kaggle's `kaggle_secrets`; README.md says what steers it.

As in Kaggle/docker-python: the client needs a token that Kaggle puts in the
environment. It asks kaggle.com over the network. With Settings > Internet off, that is
a ConnectionError. A label that is not attached to the notebook is a BackendError; a
request that Kaggle denies is a CredentialError. The errors share no base but Exception.
"""

from __future__ import annotations

import json
import os


class CredentialError(Exception):
    """The token is missing, or Kaggle denies access."""


class BackendError(Exception):
    """Kaggle's answer is not a secret."""


class ValidationError(Exception):
    """The label is empty."""


class UserSecretsClient:
    """Return the secrets that are attached to the notebook (Add-ons > Secrets)."""

    def __init__(self) -> None:
        if os.environ.get("KAGGLE_USER_SECRETS_TOKEN") is None:
            raise CredentialError(
                "A JWT Token is required to use the UserSecretsClient, but none found "
                "in environment variable KAGGLE_USER_SECRETS_TOKEN"
            )

    def get_secret(self, label: str) -> str:
        """Return the value of a secret."""
        if label is None or len(label) == 0:
            raise ValidationError("Label must be non-empty.")
        if os.environ.get("KAGGLE_DOUBLE_INTERNET") == "off":
            raise ConnectionError(
                "Connection error trying to communicate with service."
            )
        secrets = json.loads(os.environ.get("KAGGLE_DOUBLE_SECRETS", "{}"))
        if label not in secrets:
            answer = {
                "errors": [f"No user secrets exist for kernel id 1 and label {label}."],
                "error": {"code": 5},
                "wasSuccessful": False,
            }
            raise BackendError(
                f"Unexpected response from the service. Response: {answer}."
            )
        return secrets[label]
