"""Find rows that repeat others."""
