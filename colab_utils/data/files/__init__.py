"""Read raw rows from files of many formats and from the Hub, a row at a time."""
