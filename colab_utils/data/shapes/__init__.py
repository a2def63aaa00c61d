"""Turn raw rows of many shapes into rows of the five kinds."""
