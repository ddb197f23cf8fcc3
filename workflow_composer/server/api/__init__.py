"""One module per form of API, and what they share."""
