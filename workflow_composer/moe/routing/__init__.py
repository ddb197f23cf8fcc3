"""Three ways of routing tokens: table, cache, gate; and what is recorded of them."""
