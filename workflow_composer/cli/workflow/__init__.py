"""``workflow``: several steps over the rows of a table."""
