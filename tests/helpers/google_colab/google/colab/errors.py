"""The errors that Colab's modules share."""


class Error(Exception):
    """The base of most errors of Colab; `userdata.NotebookAccessError` is not one."""


class AuthorizationError(Error):
    """The user did not authorize the request."""


class RuntimeManagementError(Error):
    """The machine could not be managed."""
