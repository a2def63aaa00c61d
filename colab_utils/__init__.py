"""The code that the notebooks of the course share.

Importing a module takes milliseconds: a function imports a heavy library when it needs
it. The exceptions are modules that only training and generation import.
"""

__version__ = "0.10.0"
