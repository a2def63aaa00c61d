"""Build a dataset that is larger than the memory."""
