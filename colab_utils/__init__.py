"""What the notebooks of the course share and no lesson teaches.

Modules import nothing heavy until a function needs it, so importing one costs
milliseconds; but for those that only training and answering import.
"""

__version__ = "0.2.0"
