"""Rules that filter rows, a check for test rows in the training data, and selection."""
