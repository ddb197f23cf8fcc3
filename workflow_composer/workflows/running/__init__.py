"""Steps at work: of a row, of the items of a list, and over all rows."""
