"""One line per request, and what can be read from many of them."""
