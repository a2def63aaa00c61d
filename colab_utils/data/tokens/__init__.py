"""Write rows as the tokens that a model reads, and mark those that are trained."""
