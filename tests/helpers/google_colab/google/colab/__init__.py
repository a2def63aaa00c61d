"""A stand-in for Colab's own package; ../../README.md says what steers it."""

from google.colab import errors, files, output

__all__ = ["errors", "files", "output"]
